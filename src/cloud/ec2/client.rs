//! The SDK's client, set up from our settings.

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, ConfigLoader, Region};
use aws_sdk_ec2::Client;
use aws_sdk_ec2::config::{Credentials, FrameworkMetadata, SharedHttpClient};

use super::super::http::{ByScheme, CaBundleError, read_ca_bundle};
use super::super::retries::ThePoolPacesThrottling;
use super::super::settings::Ec2Settings;
use super::super::whole::WholeAnswersOnly;

pub(super) async fn build(settings: &Ec2Settings) -> Result<Client, CaBundleError> {
    let ca_bundle = settings.ca_bundle.as_deref().map(read_ca_bundle).transpose()?;
    Ok(over(settings, SharedHttpClient::new(ByScheme::new(ca_bundle))).await)
}

/// The client over any way to carry a request.
pub(super) async fn over(settings: &Ec2Settings, http: SharedHttpClient) -> Client {
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http.clone())
        .retry_config(RetryConfig::standard().with_max_attempts(settings.max_attempts))
        .timeout_config(timeouts(settings));
    if let Ok(name) = FrameworkMetadata::new("aws-cni", Some(env!("CARGO_PKG_VERSION"))) {
        loader = loader.framework_metadata(name);
    }
    if let Some(region) = &settings.region {
        loader = loader.region(Region::new(region.clone()));
    }
    if let Some(endpoint) = &settings.endpoint {
        loader = loader.endpoint_url(endpoint);
    }
    if let Some(profile) = &settings.profile {
        loader = loader.profile_name(profile);
    }
    if let Some(use_fips) = settings.use_fips {
        loader = loader.use_fips(use_fips);
    }
    if let Some(use_dual_stack) = settings.use_dual_stack {
        loader = loader.use_dual_stack(use_dual_stack);
    }
    let loader = credentials(settings, http, loader).await;
    let config = aws_sdk_ec2::config::Builder::from(&loader.load().await)
        .retry_classifier(ThePoolPacesThrottling)
        .interceptor(WholeAnswersOnly)
        .build();
    Client::from_conf(config)
}

fn timeouts(settings: &Ec2Settings) -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(settings.connect_timeout)
        .read_timeout(settings.attempt_timeout)
        .operation_attempt_timeout(settings.attempt_timeout)
        .build()
}

/// What the SDK's own chain cannot know: keys and a metadata endpoint from the configuration file.
async fn credentials(settings: &Ec2Settings, http: SharedHttpClient, loader: ConfigLoader) -> ConfigLoader {
    if let Some(key) = &settings.access_key {
        let token = key.session_token.clone();
        return loader.credentials_provider(Credentials::new(
            &key.id,
            &key.secret,
            token,
            None,
            "configuration file",
        ));
    }
    let Some(endpoint) = &settings.metadata_endpoint else {
        return loader;
    };
    let region = settings.region.clone().map(Region::new);
    let config = ProviderConfig::without_region()
        .with_region(region)
        .with_http_client(http);
    let metadata = aws_config::imds::Client::builder()
        .configure(&config)
        .endpoint(endpoint);
    let Ok(metadata) = metadata else { return loader };
    let mut chain = DefaultCredentialsChain::builder()
        .configure(config)
        .imds_client(metadata.build());
    if let Some(profile) = &settings.profile {
        chain = chain.profile_name(profile);
    }
    loader.credentials_provider(chain.build().await)
}
