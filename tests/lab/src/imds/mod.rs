//! The instance metadata service, version 2 and optionally 1.

mod tree;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::calls::{Call, Outcome, Service};
use crate::cloud::Shared;
use crate::faults::{Effect, Outage};
use crate::http::{Admission, Handler, Reply, ReplyFuture, Request, Response};
use crate::vpc::rng::Rng;
use crate::vpc::{Instance, InstanceId, InstanceState};

use tree::{Node, Sources};

const TOKEN_PATH: &str = "api/token";
const TOKEN_HEADER: &str = "x-aws-ec2-metadata-token";
const TTL_HEADER: &str = "x-aws-ec2-metadata-token-ttl-seconds";
const LONGEST_TTL: u64 = 21_600;

/// The IMDS endpoint behind one listener.
#[derive(Debug)]
pub(crate) struct Endpoint {
    shared: Arc<Shared>,
    node: Option<InstanceId>,
    tokens: Mutex<BTreeMap<String, (InstanceId, Instant)>>,
}

impl Endpoint {
    pub(crate) fn new(shared: Arc<Shared>, node: Option<InstanceId>) -> Self {
        Self {
            shared,
            node,
            tokens: Mutex::default(),
        }
    }

    fn instance(&self, source: IpAddr) -> Option<InstanceId> {
        self.shared.instance_at(source).or_else(|| self.node.clone())
    }

    async fn answer(&self, instance: Option<InstanceId>, request: &Request) -> Reply {
        let at = Instant::now();
        let calls = &self.shared.calls;
        let seq = calls.next_seq();
        let path = below_version(&request.path).unwrap_or(&request.path).to_owned();
        let action = path.trim_matches('/').to_owned();
        let faults = &self.shared.faults;
        let verdict = faults.meet(Service::Imds, &action, instance.as_ref());
        let latency = faults.timing_of(instance.as_ref()).imds;
        let wait = faults.sample(latency) + verdict.before;
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        let (reply, outcome) = match verdict.effect {
            Some(Effect::Error { message, status, .. } | Effect::ErrorAfter { message, status, .. }) => (
                Reply::Answer(refusal(status, &message)),
                Outcome::Error(status.to_string()),
            ),
            Some(Effect::LoseAnswer | Effect::LoseRequest) => {
                (Reply::Close, Outcome::Lost { happened: false })
            }
            Some(Effect::ResetAfter) => (Reply::Reset, Outcome::Lost { happened: false }),
            Some(Effect::Body { status, body }) => {
                let outcome = Outcome::Error(format!("Body{status}"));
                (Reply::Answer(Response::new(status, "text/plain", body)), outcome)
            }
            _ => {
                let response = self.respond(instance.as_ref(), &path, request, seq);
                let outcome = match response.status {
                    200 => Outcome::Ok,
                    status => Outcome::Error(status.to_string()),
                };
                (Reply::Answer(response), outcome)
            }
        };
        if !verdict.after.is_zero() {
            tokio::time::sleep(verdict.after).await;
        }
        calls.record(Call {
            seq,
            service: Service::Imds,
            at,
            took: at.elapsed(),
            source: request.peer,
            instance,
            action,
            params: BTreeMap::from([("method".to_owned(), request.method.clone())]),
            outcome,
            request_id: String::new(),
        });
        reply
    }

    fn respond(&self, instance: Option<&InstanceId>, path: &str, request: &Request, seq: u64) -> Response {
        let found = instance.and_then(|id| {
            self.shared
                .model(|model, _| model.instances().get(id).cloned())
                .filter(|instance| instance.state == InstanceState::Running)
        });
        let Some(instance) = found else {
            return refusal(404, "the lab knows no running instance at this address");
        };
        match request.method.as_str() {
            "PUT" if path.trim_matches('/') == TOKEN_PATH => self.grant(&instance, request, seq),
            "GET" | "HEAD" => match self.check_token(&instance, request) {
                Ok(ttl) => {
                    let mut response = self.read(&instance, path, request);
                    if let Some(ttl) = ttl {
                        response.headers.push((TTL_HEADER, ttl.to_string()));
                    }
                    response
                }
                Err(status) => refusal(status, ""),
            },
            _ => refusal(405, ""),
        }
    }

    /// A session token, whose packets travel no further than the instance's hop limit.
    fn grant(&self, instance: &Instance, request: &Request, seq: u64) -> Response {
        if request.header("x-forwarded-for").is_some() {
            return refusal(403, "");
        }
        let ttl = request
            .header(TTL_HEADER)
            .and_then(|text| text.trim().parse::<u64>().ok())
            .filter(|ttl| (1..=LONGEST_TTL).contains(ttl));
        let Some(ttl) = ttl else {
            return refusal(400, "");
        };
        let mut rng = Rng::new(self.shared.seed ^ seq.rotate_left(17));
        let token = format!(
            "AQAEA{:016x}{:016x}{:016x}==",
            rng.next_u64(),
            rng.next_u64(),
            rng.next_u64()
        );
        let until = Instant::now() + Duration::from_secs(ttl);
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.retain(|_, (_, until)| *until > Instant::now());
        tokens.insert(token.clone(), (instance.id.clone(), until));
        let mut response = Response::new(200, "text/plain", token);
        response.headers.push((TTL_HEADER, ttl.to_string()));
        response.ttl = Some(instance.imds_hop_limit);
        response
    }

    /// The rest of the token's life; `None` for a permitted request without one.
    fn check_token(&self, instance: &Instance, request: &Request) -> Result<Option<u64>, u16> {
        let Some(token) = request.header(TOKEN_HEADER) else {
            return if instance.imds_tokens_required {
                Err(401)
            } else {
                Ok(None)
            };
        };
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens
            .get(token)
            .filter(|(owner, until)| *owner == instance.id && *until > Instant::now())
            .map(|(_, until)| Some(until.saturating_duration_since(Instant::now()).as_secs()))
            .ok_or(401)
    }

    fn read(&self, instance: &Instance, path: &str, request: &Request) -> Response {
        let faults = &self.shared.faults;
        let lies = faults.lies_of(Some(&instance.id));
        let lag = faults.timing_of(Some(&instance.id)).imds_lag;
        let tree = self.shared.model(|model, now| {
            let view = self.shared.view(model, faults.reached(lag, now));
            tree::build(&Sources {
                model,
                instance,
                view: &view,
                lies: &lies,
            })
        });
        let slash = path.ends_with('/');
        match tree.at(path) {
            // A slash after a value does no harm: botocore asks for `placement/availability-zone/`.
            Some(Node::Leaf(value)) => {
                let mut response = Response::new(200, "text/plain", value.clone());
                response.headers.push(("Server", "EC2ws".to_owned()));
                response
            }
            Some(Node::Dir(_)) if !slash && lies.imds_redirects_directories => {
                let mut response = refusal(301, "");
                response.headers.push(("Location", format!("{}/", request.path)));
                response
            }
            Some(Node::Dir(entries)) => {
                let mut response = Response::new(200, "text/plain", Node::listing(entries));
                response.headers.push(("Server", "EC2ws".to_owned()));
                response
            }
            Some(Node::Ghost) | None => refusal(404, ""),
        }
    }
}

impl Handler for Endpoint {
    fn admit(&self, peer: IpAddr) -> Admission {
        let instance = self.instance(peer);
        match self.shared.faults.outage_of(Service::Imds, instance.as_ref()) {
            None => Admission::Serve,
            Some(Outage::Reset) => Admission::Reset,
            Some(Outage::BlackHole) => Admission::Ignore,
        }
    }

    fn handle(self: Arc<Self>, request: Request) -> ReplyFuture {
        Box::pin(async move {
            match self.admit(request.peer) {
                Admission::Serve => {}
                Admission::Reset => return Reply::Reset,
                Admission::Ignore => std::future::pending().await,
            }
            let instance = self.instance(request.peer);
            self.answer(instance, &request).await
        })
    }
}

/// The path below `latest` or a dated version, with its trailing slash.
fn below_version(path: &str) -> Option<&str> {
    let (version, rest) = path.strip_prefix('/')?.split_once('/')?;
    let dated = version
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'-' || byte == b'.');
    (version == "latest" || dated).then_some(rest)
}

/// IMDS wraps its refusals in a small page, which clients must not take for a value.
fn refusal(status: u16, message: &str) -> Response {
    let title = match status {
        301 => "301 - Moved Permanently",
        400 => "400 - Bad Request",
        401 => "401 - Unauthorized",
        403 => "403 - Forbidden",
        404 => "404 - Not Found",
        405 => "405 - Method Not Allowed",
        _ => "500 - Internal Server Error",
    };
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"iso-8859-1\"?>\n<!DOCTYPE html PUBLIC \"-//W3C//DTD XHTML 1.0 \
         Transitional//EN\"\n\t\"http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd\">\n<html \
         xmlns=\"http://www.w3.org/1999/xhtml\" xml:lang=\"en\" lang=\"en\">\n <head>\n  <title>{title}</title>\n \
         </head>\n <body>\n  <h1>{title}</h1>\n  {message}\n </body>\n</html>\n"
    );
    let mut response = Response::new(status, "text/html", body);
    response.headers.push(("Server", "EC2ws".to_owned()));
    response
}

#[cfg(test)]
mod tests {
    use super::below_version;

    #[test]
    fn versions() {
        assert_eq!(below_version("/latest/meta-data/mac"), Some("meta-data/mac"));
        assert_eq!(below_version("/2021-07-15/meta-data/"), Some("meta-data/"));
        assert_eq!(below_version("/latest/"), Some(""));
        assert_eq!(below_version("/other/x"), None);
    }
}
