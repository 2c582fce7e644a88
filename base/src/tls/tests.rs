use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
    SerialNumber,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    /// A certificate with these names that counts from `begins` to `ends`.
    fn issue(
        &self,
        names: &[&str],
        begins: SystemTime,
        ends: SystemTime,
    ) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = names.iter().map(|name| SanType::URI((*name).try_into().unwrap())).collect();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        params.serial_number = Some(SerialNumber::from_slice(&[1, 2, 3]));
        (params.not_before, params.not_after) = (begins.into(), ends.into());
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.der().clone(), PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }

    /// A keeper that shows such a certificate and trusts this authority.
    fn keeper(&self, name: &str) -> Arc<Keeper> {
        let keeper = Keeper::new();
        let now = SystemTime::now();
        let (certificate, key) = self.issue(&[name], now - DAY, now + DAY);
        keeper.show(vec![certificate, self.certificate.clone()], key).unwrap();
        keeper.trust([&self.certificate]).unwrap();
        keeper
    }
}

type Met = (Result<Option<Seen>, io::Error>, Result<Option<Seen>, io::Error>);

/// A handshake, and what each side saw of the other: the server first. Both must read, for a client hears only then that it was
/// refused.
async fn meet(server: Arc<ServerConfig>, client: Arc<ClientConfig>) -> Met {
    let (one, other) = tokio::io::duplex(64 << 10);
    let serving = async {
        let mut stream = TlsAcceptor::from(server).accept(one).await?;
        stream.write_all(b"!").await?;
        stream.flush().await?;
        stream.read_u8().await?;
        Ok(seen(stream.get_ref().1).unwrap())
    };
    let asking = async {
        let mut stream = TlsConnector::from(client).connect(no_name(), other).await?;
        stream.write_all(b"?").await?;
        stream.flush().await?;
        stream.read_u8().await?;
        Ok(seen(stream.get_ref().1).unwrap())
    };
    tokio::join!(serving, asking)
}

fn refusal(met: Result<Option<Seen>, io::Error>) -> Option<Refusal> {
    Refusal::of(&met.unwrap_err())
}

#[tokio::test]
async fn both_see_the_name_and_the_time_of_the_other() {
    let authority = Authority::new();
    let (one, other) = (authority.keeper("spiffe://x/one"), authority.keeper("spiffe://x/other"));
    let (by_server, by_client) = meet(server(&one, true, &[b"h2"]), client(&other, None, &[b"h2"])).await;
    let (by_server, by_client) = (by_server.unwrap().unwrap(), by_client.unwrap().unwrap());
    assert_eq!((by_server.name.as_str(), by_client.name.as_str()), ("spiffe://x/other", "spiffe://x/one"));
    assert_eq!(by_server.serial, [1, 2, 3]);
    let now = SystemTime::now();
    assert!(by_server.begins < now && now < by_server.ends && by_server.ends < now + DAY);
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused_or_has_no_name() {
    let authority = Authority::new();
    let one = authority.keeper("spiffe://x/one");
    let nobody = Keeper::new();
    nobody.trust([&authority.certificate]).unwrap();
    let (by_server, by_client) = meet(server(&one, true, &[]), client(&nobody, None, &[])).await;
    assert_eq!(refusal(by_server), Some(Refusal::NoCertificate));
    assert_eq!(refusal(by_client), Some(Refusal::Refused));
    let (by_server, by_client) = meet(server(&one, false, &[]), client(&nobody, None, &[])).await;
    assert_eq!(by_server.unwrap(), None);
    assert_eq!(by_client.unwrap().unwrap().name, "spiffe://x/one");
}

#[tokio::test]
async fn certificates_of_a_foreign_authority_are_refused_by_both_sides() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let (one, foreign) = (ours.keeper("spiffe://x/one"), theirs.keeper("spiffe://x/two"));
    let (_, by_client) = meet(server(&foreign, false, &[]), client(&one, None, &[])).await;
    assert_eq!(refusal(by_client), Some(Refusal::Foreign));
    // It believes us, and we do not believe it.
    foreign.trust([&ours.certificate]).unwrap();
    let (by_server, _) = meet(server(&one, true, &[]), client(&foreign, None, &[])).await;
    assert_eq!(refusal(by_server), Some(Refusal::Foreign));
    let (by_server, _) = meet(server(&one, false, &[]), client(&foreign, None, &[])).await;
    assert_eq!(refusal(by_server), Some(Refusal::Foreign), "not even where none is needed");
}

#[tokio::test]
async fn a_certificate_counts_in_its_time_only() {
    let authority = Authority::new();
    let one = authority.keeper("spiffe://x/one");
    let now = SystemTime::now();
    for (begins, ends) in [(now - 2 * DAY, now - DAY), (now + DAY, now + 2 * DAY)] {
        let other = Keeper::new();
        let (certificate, key) = authority.issue(&["spiffe://x/other"], begins, ends);
        other.show(vec![certificate], key).unwrap();
        other.trust([&authority.certificate]).unwrap();
        let (by_server, _) = meet(server(&one, true, &[]), client(&other, None, &[])).await;
        assert_eq!(refusal(by_server), Some(Refusal::Expired));
        let (_, by_client) = meet(server(&other, true, &[]), client(&one, None, &[])).await;
        assert_eq!(refusal(by_client), Some(Refusal::Expired));
    }
}

#[tokio::test]
async fn a_pin_admits_the_server_that_shows_that_authority_and_no_other() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let (one, impostor) = (ours.keeper("spiffe://x/control"), theirs.keeper("spiffe://x/control"));
    let stranger = Keeper::new();
    let pinned = Some(pin(&ours.certificate));
    let (by_server, by_client) = meet(server(&one, false, &[]), client(&stranger, pinned, &[])).await;
    assert_eq!(by_server.unwrap(), None);
    assert_eq!(by_client.unwrap().unwrap().name, "spiffe://x/control");
    let (_, by_client) = meet(server(&impostor, false, &[]), client(&stranger, pinned, &[])).await;
    assert_eq!(refusal(by_client), Some(Refusal::Foreign));
    // It knows our authority's certificate, which is no secret, but is not certified by it.
    let (certificate, key) = theirs.issue(&["spiffe://x/control"], SystemTime::now() - DAY, SystemTime::now() + DAY);
    impostor.show(vec![certificate, ours.certificate.clone()], key).unwrap();
    let (_, by_client) = meet(server(&impostor, false, &[]), client(&stranger, pinned, &[])).await;
    assert_eq!(refusal(by_client), Some(Refusal::Foreign));
}

#[tokio::test]
async fn what_is_shown_and_trusted_changes_while_it_runs() {
    let (old, new) = (Authority::new(), Authority::new());
    let (one, other) = (old.keeper("spiffe://x/one"), old.keeper("spiffe://x/other"));
    let (serving, asking) = (server(&one, true, &[]), client(&other, None, &[]));
    assert!(meet(serving.clone(), asking.clone()).await.0.is_ok());
    let now = SystemTime::now();
    let (certificate, key) = new.issue(&["spiffe://x/new"], now - DAY, now + DAY);
    one.show(vec![certificate], key).unwrap();
    assert_eq!(refusal(meet(serving.clone(), asking.clone()).await.1), Some(Refusal::Foreign));
    other.trust([&old.certificate, &new.certificate]).unwrap();
    assert_eq!(meet(serving, asking).await.1.unwrap().unwrap().name, "spiffe://x/new");
}

#[tokio::test]
async fn what_is_not_tls_is_said_to_be_that() {
    let authority = Authority::new();
    let acceptor = TlsAcceptor::from(server(&authority.keeper("spiffe://x/one"), true, &[]));
    let (one, mut other) = tokio::io::duplex(1024);
    other.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert_eq!(Refusal::of(&acceptor.accept(one).await.unwrap_err()), Some(Refusal::NotTls));
}

#[test]
fn a_certificate_has_exactly_one_name() {
    let authority = Authority::new();
    let now = SystemTime::now();
    for names in [&[][..], &["spiffe://x/one", "spiffe://x/two"]] {
        let (certificate, _) = authority.issue(names, now, now + DAY);
        assert!(read(&certificate).unwrap_err().contains("exactly one"));
    }
    assert!(read(&CertificateDer::from(vec![1, 2, 3])).unwrap_err().contains("no certificate"));
}

#[test]
fn a_key_that_is_not_that_of_the_certificate_is_not_shown() {
    let authority = Authority::new();
    let now = SystemTime::now();
    let (certificate, _) = authority.issue(&["spiffe://x/one"], now, now + DAY);
    let (_, key) = authority.issue(&["spiffe://x/one"], now, now + DAY);
    let keeper = Keeper::new();
    assert!(keeper.show(vec![certificate], key).is_err());
    assert!(!keeper.is_shown());
}

#[test]
fn a_signature_is_that_of_the_shown_key_over_that_message() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let (one, other, foreign) =
        (ours.keeper("spiffe://x/one"), ours.keeper("spiffe://x/other"), theirs.keeper("spiffe://x/one"));
    let now = SystemTime::now();
    let signature = one.sign(b"message").unwrap();
    assert!(signature.len() <= LONGEST_SIGNATURE);
    let signatory = other.signatory(&one.certificate().unwrap(), now).unwrap();
    assert_eq!(signatory.seen.name, "spiffe://x/one");
    assert!(signatory.signed(b"message", &signature));
    assert!(!signatory.signed(b"massage", &signature));
    assert!(!signatory.signed(b"message", &other.sign(b"message").unwrap()), "another's key");
    for bad in [&[][..], &signature[1..], &[&signature[..], &[0]].concat()] {
        assert!(!signatory.signed(b"message", bad));
    }
    assert_eq!(one.signatory(&foreign.certificate().unwrap(), now), Err(Refusal::Foreign));
    assert_eq!(one.signatory(&CertificateDer::from(vec![1, 2, 3]), now), Err(Refusal::Foreign));
    for late in [now - 2 * DAY, now + 2 * DAY] {
        assert_eq!(other.signatory(&one.certificate().unwrap(), late), Err(Refusal::Expired));
        assert!(signatory.counts_at(now) && !signatory.counts_at(late));
    }
    let before = other.trusts();
    other.trust([&theirs.certificate]).unwrap();
    assert_ne!(other.trusts(), before);
    assert_eq!(other.signatory(&one.certificate().unwrap(), now), Err(Refusal::Foreign));
    assert!(Keeper::new().sign(b"message").is_none() && Keeper::new().certificate().is_none());
}
