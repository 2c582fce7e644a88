//! Certificates on disk and of our own authority.

use rcgen::{CertificateParams, KeyPair};

use super::*;
use crate::identity::{self, Authority};
use crate::store::MemoryStore;

/// A certificate and its key as PEM, that count for so many days.
fn made(days: i64) -> (String, String) {
    let pair = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(["control.example".to_owned()]).unwrap();
    let day = Duration::from_secs(24 * 3600);
    let now = SystemTime::now();
    params.not_before = (now - 9 * day).into();
    params.not_after = if days > 0 { now + day } else { now - day }.into();
    (params.self_signed(&pair).unwrap().pem(), pair.serialize_pem())
}

fn opened(source: Source) -> Result<Certificate, String> {
    Certificate::open(source, &mut Registry::default())
}

#[test]
fn renewed_files_are_shown_and_halves_of_two_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = (dir.path().join("c.pem"), dir.path().join("k.pem"));
    let (one, two) = (made(1), made(1));
    let write = |certified: &str, secret: &str| {
        std::fs::write(&certificate, certified).unwrap();
        std::fs::write(&key, secret).unwrap();
    };
    write(&one.0, &one.1);
    let source = Source::Files { certificate: certificate.clone(), key: key.clone() };
    let mut shown = opened(source.clone()).unwrap();
    assert_eq!(shown.refresh(), Ok(false), "nothing has changed");
    write(&two.0, &one.1);
    assert!(shown.refresh().unwrap_err().starts_with("rest.cert_file, rest.key_file: "));
    write(&two.0, &two.1);
    assert_eq!(shown.refresh(), Ok(true));
    for (certified, secret, fault) in
        [("", two.1.as_str(), "rest.cert_file"), (&two.0, "", "rest.key_file"), (&made(-1).0, &two.1, "over")]
    {
        write(certified, secret);
        let why = shown.refresh().unwrap_err();
        assert!(why.contains(fault), "{why}");
        assert!(opened(source.clone()).is_err(), "no start with such files");
    }
    std::fs::remove_file(&key).unwrap();
    assert!(shown.refresh().unwrap_err().starts_with("rest.key_file: read "));
    assert!(shown.keeper.is_shown());
}

#[tokio::test]
async fn our_own_authority_certifies_host_names_and_nobody_among_nodes() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::open(dir.path(), "shoal".parse().unwrap()).unwrap();
    let store = Arc::new(MemoryStore::default());
    let metrics = identity::Metrics::default();
    let identity = Identity::open(identity::Config::default(), authority, store, metrics).await.unwrap();
    let names = ["control.example".to_owned(), "10.1.2.3".to_owned()];
    let (chain, ..) = identity.certify_host(&names).unwrap();
    let seen = tls::read(&chain[0]).unwrap_err();
    assert!(seen.contains("URI name"), "{seen}");
    let (_, parsed) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
    assert_eq!(parsed.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 2);
    let usage = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && !usage.client_auth);
    let identity = Arc::new(identity);
    let shown = opened(Source::Authority { identity, names: names.to_vec() }).unwrap();
    assert!(shown.next > Duration::from_secs(15 * 3600), "at two thirds of its time: {:?}", shown.next);
}
