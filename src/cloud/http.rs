//! The HTTP client under the SDK: plain connections cost nothing, TLS is set up when the first `https` URL is asked
//! for.
//!
//! Loading the system's certificates takes milliseconds of CPU, which neither a start nor a node whose endpoint is
//! plain `http` (a lab, a VPC endpoint behind a local proxy) should pay.

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode};
use aws_smithy_http_client::{Connector, ConnectorBuilder};
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// Why the certificates of `AWS_CA_BUNDLE` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CaBundleError {
    /// The file cannot be read.
    #[error("cannot read the certificates of AWS_CA_BUNDLE={path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The file holds something that is no certificate, or none at all.
    #[error("AWS_CA_BUNDLE={path} does not hold PEM certificates that can be used")]
    Certificates {
        /// The file.
        path: String,
    },
}

/// The certificates of a PEM file, checked, because the HTTP client panics on what is none.
pub(super) fn read_ca_bundle(path: &Path) -> Result<Vec<u8>, CaBundleError> {
    let name = || path.display().to_string();
    let pem = std::fs::read(path).map_err(|source| CaBundleError::Read { path: name(), source })?;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let usable = certificate.is_ok_and(|certificate| roots.add(certificate).is_ok());
        if !usable {
            return Err(CaBundleError::Certificates { path: name() });
        }
    }
    if roots.is_empty() {
        Err(CaBundleError::Certificates { path: name() })
    } else {
        Ok(pem)
    }
}

type Timeouts = (Option<Duration>, Option<Duration>);

/// The client handed to the SDK; keeps a connector, and so a connection pool, for each pair of time-outs in use.
#[derive(Debug)]
pub(super) struct ByScheme {
    ca_bundle: Option<Vec<u8>>,
    connectors: Mutex<Vec<(Timeouts, SharedHttpConnector)>>,
}

impl ByScheme {
    pub(super) fn new(ca_bundle: Option<Vec<u8>>) -> Self {
        Self {
            ca_bundle,
            connectors: Mutex::default(),
        }
    }
}

impl HttpClient for ByScheme {
    fn http_connector(&self, settings: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        let timeouts = (settings.connect_timeout(), settings.read_timeout());
        let mut connectors = self.connectors.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, connector)) = connectors.iter().find(|(known, _)| *known == timeouts) {
            return connector.clone();
        }
        let connector = SharedHttpConnector::new(SchemeConnector::new(settings, self.ca_bundle.clone()));
        connectors.push((timeouts, connector.clone()));
        connector
    }
}

#[derive(Debug)]
struct SchemeConnector {
    plain: Connector,
    tls: Arc<LazyTls>,
}

#[derive(Debug)]
struct LazyTls {
    settings: HttpConnectorSettings,
    ca_bundle: Option<Vec<u8>>,
    connector: OnceLock<Connector>,
}

impl SchemeConnector {
    fn new(settings: &HttpConnectorSettings, ca_bundle: Option<Vec<u8>>) -> Self {
        // No proxy for plain http: it is the instance metadata service, which must never be asked through one.
        let plain = base(settings).tls_provider(Provider::Rustls(CryptoMode::Ring));
        let plain = plain.tls_context(context(TrustStore::empty())).build();
        Self {
            plain,
            tls: Arc::new(LazyTls {
                settings: settings.clone(),
                ca_bundle,
                connector: OnceLock::new(),
            }),
        }
    }
}

impl HttpConnector for SchemeConnector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        if request.uri().starts_with("http://") {
            return self.plain.call(request);
        }
        if let Some(connector) = self.tls.connector.get() {
            return connector.call(request);
        }
        let tls = Arc::clone(&self.tls);
        HttpConnectorFuture::new(async move {
            let ready = Arc::clone(&tls);
            // Off the runtime's thread: it may be the one that answers pods.
            let built = tokio::task::spawn_blocking(move || {
                ready.connector.get_or_init(|| ready.build());
            });
            built
                .await
                .map_err(|error| ConnectorError::other(error.into(), None))?;
            let connector = tls.connector.get_or_init(|| tls.build());
            connector.call(request).await
        })
    }
}

impl LazyTls {
    fn build(&self) -> Connector {
        let trust = match &self.ca_bundle {
            Some(pem) => TrustStore::empty().with_pem_certificate(pem.clone()),
            None => TrustStore::default(),
        };
        base(&self.settings)
            .proxy_config(ProxyConfig::from_env())
            .tls_provider(Provider::Rustls(CryptoMode::Ring))
            .tls_context(context(trust))
            .build()
    }
}

fn base(settings: &HttpConnectorSettings) -> ConnectorBuilder {
    Connector::builder().connector_settings(settings.clone())
}

/// Building a context cannot fail with any input today; the default one trusts the system.
fn context(trust: TrustStore) -> TlsContext {
    TlsContext::builder()
        .with_trust_store(trust)
        .build()
        .unwrap_or_default()
}
