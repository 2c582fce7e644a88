//! Transfers from a registry into containerd's image store go through the mirror.
//!
//! What a client asks goes on byte for byte; behind it comes what we add. Protobuf takes the last of a field, and merges
//! messages that come twice, so fields that this program does not know stay.

use containerd_client::services::v1::TransferRequest;
use containerd_client::types::transfer::{ImageStore, OciRegistry, RegistryResolver};
use http::Request;
use hyper::body::Incoming;
use prost::{Message as _, Name};
use prost_types::Any;

use super::upstream::Upstream;
use super::{Body, Forward, Response, grpc};

/// containerd takes no more, and says so itself of what is longer.
const MOST: usize = 16 << 20;

impl Forward {
    /// A transfer: to the mirror if it is one from a registry into the image store and its client named no hosts.
    pub(super) async fn transfer(&self, request: Request<Incoming>, upstream: &Upstream) -> Response<Body> {
        let (mut head, body) = request.into_parts();
        let looked = grpc::look(body, MOST).await;
        let hosts = self.config.hosts_dir.to_str();
        let ours = looked.message.zip(hosts).and_then(|(asked, hosts)| steered(&asked, hosts));
        let body = match ours {
            Some(message) => {
                self.metrics.steered.inc();
                head.headers.remove(http::header::CONTENT_LENGTH);
                grpc::body(&message)
            }
            None => looked.body,
        };
        upstream.send(Request::from_parts(head, body)).await
    }
}

/// The request with another directory of hosts. `None`: it is to stay as it is.
fn steered(asked: &[u8], hosts: &str) -> Option<Vec<u8>> {
    let request = TransferRequest::decode(asked).ok()?;
    let (source, destination) = (request.source?, request.destination?);
    if !is::<OciRegistry>(&source) || !is::<ImageStore>(&destination) {
        return None;
    }
    let registry = OciRegistry::decode(source.value.as_slice()).ok()?;
    if registry.resolver.is_some_and(|resolver| !resolver.host_dir.is_empty()) {
        return None;
    }
    let resolver = RegistryResolver { host_dir: hosts.to_owned(), ..RegistryResolver::default() };
    let ours = OciRegistry { resolver: Some(resolver), ..OciRegistry::default() };
    let value = [source.value, ours.encode_to_vec()].concat();
    let ours = TransferRequest { source: Some(Any { type_url: source.type_url, value }), ..TransferRequest::default() };
    Some([asked, &ours.encode_to_vec()].concat())
}

/// containerd writes the name alone where others put a host and a slash before it.
fn is<M: Name>(any: &Any) -> bool {
    any.type_url.rsplit('/').next() == Some(M::full_name().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packed<M: Name>(message: &M) -> Any {
        containerd_client::to_any(message)
    }

    fn registry(resolver: Option<RegistryResolver>) -> OciRegistry {
        OciRegistry { reference: "registry.example/app:1".into(), resolver }
    }

    fn request(source: Any, destination: Any) -> Vec<u8> {
        TransferRequest { source: Some(source), destination: Some(destination), options: None }.encode_to_vec()
    }

    fn hosts_of(asked: &[u8]) -> RegistryResolver {
        let request = TransferRequest::decode(asked).unwrap();
        let source = request.source.unwrap();
        assert!(request.destination.is_some() && is::<OciRegistry>(&source));
        let registry = OciRegistry::decode(source.value.as_slice()).unwrap();
        assert_eq!(registry.reference, "registry.example/app:1");
        registry.resolver.unwrap()
    }

    #[test]
    fn a_pull_is_sent_to_the_mirror_with_all_that_its_client_said() {
        let plain = steered(&request(packed(&registry(None)), packed(&ImageStore::default())), "/hosts").unwrap();
        assert_eq!(hosts_of(&plain).host_dir, "/hosts");
        let said = RegistryResolver {
            auth_stream: "creds".into(),
            headers: [("X-Meta".to_owned(), "1".to_owned())].into(),
            default_scheme: "http".into(),
            ..RegistryResolver::default()
        };
        let asked = request(packed(&registry(Some(said.clone()))), packed(&ImageStore::default()));
        let sent = hosts_of(&steered(&asked, "/hosts").unwrap());
        assert_eq!(sent, RegistryResolver { host_dir: "/hosts".into(), ..said });
    }

    #[test]
    fn fields_that_are_not_known_here_stay() {
        // Field 99, a string: in the request, in the registry, and in its resolver.
        let unknown = [0x9a, 0x06, 0x03, b'n', b'e', b'w'];
        let mut value =
            registry(Some(RegistryResolver { auth_stream: "creds".into(), ..Default::default() })).encode_to_vec();
        value.extend(unknown);
        let resolver = [&[0x12, unknown.len() as u8][..], &unknown].concat();
        value.extend(resolver);
        let source = Any { type_url: OciRegistry::full_name(), value };
        let asked = [request(source, packed(&ImageStore::default())), unknown.to_vec()].concat();
        let sent = steered(&asked, "/hosts").unwrap();
        assert!(sent.starts_with(&asked), "what came goes on as it came");
        let source = TransferRequest::decode(sent.as_slice()).unwrap().source.unwrap();
        let times = source.value.windows(unknown.len()).filter(|bytes| *bytes == unknown).count();
        assert_eq!(times, 2, "registry and resolver keep theirs");
    }

    #[test]
    fn everything_else_stays_as_it_is() {
        let named = RegistryResolver { host_dir: "/mine".into(), ..RegistryResolver::default() };
        let named = request(packed(&registry(Some(named))), packed(&ImageStore::default()));
        assert_eq!(steered(&named, "/hosts"), None, "its client named hosts");
        let push = request(packed(&ImageStore::default()), packed(&registry(None)));
        assert_eq!(steered(&push, "/hosts"), None, "a push");
        let export = request(packed(&ImageStore::default()), packed(&ImageStore::default()));
        assert_eq!(steered(&export, "/hosts"), None, "an export");
        assert_eq!(steered(&[], "/hosts"), None);
    }

    proptest! {
        #[test]
        fn nothing_that_comes_makes_it_fail(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = steered(&bytes, "/hosts");
        }
    }
}
