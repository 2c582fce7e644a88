//! What this node joins with, as it stands on disk at this moment, and whom it may be shown to.

use std::path::Path;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use shoal_base::tls;
use shoal_proto::identity::{IdentityError, JoinToken};
use tonic::Status;

use super::{Authority, JoinBy};

/// A secret, so it is neither printed nor kept.
pub(super) struct Invitation {
    /// Whoever is not certified by this authority does not see the token.
    pub(super) authority: tls::Pin,
    pub(super) token: String,
}

impl Invitation {
    /// Reads it.
    ///
    /// # Errors
    /// Which setting's file is of no use, and why.
    pub(super) async fn read(by: &JoinBy) -> Result<Self, Status> {
        match by {
            JoinBy::Token(path) => {
                let at = "control.join_token_file";
                let token: Result<JoinToken, IdentityError> = read(at, path).await?.parse();
                let token = token.map_err(|error| failed(at, path, &error.to_string()))?;
                Ok(Self { authority: token.ca, token: token.reveal() })
            }
            JoinBy::ServiceAccount { token, authority } => {
                let authority = match authority {
                    Authority::Sha256(pin) => *pin,
                    Authority::File(path) => pin_of(path).await?,
                };
                let at = "control.service_account_token_file";
                let text = read(at, token).await?.trim().to_owned();
                // What is no token would be shown to control as one.
                let good = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
                if text.split('.').count() != 3
                    || !text.split('.').all(|part| !part.is_empty() && part.bytes().all(good))
                {
                    return Err(failed(
                        at,
                        token,
                        "holds no service account token (three parts in base64url, with dots)",
                    ));
                }
                Ok(Self { authority, token: text })
            }
        }
    }
}

/// The file of an authority has one certificate: of several it would not be clear which one is meant.
async fn pin_of(path: &Path) -> Result<tls::Pin, Status> {
    let at = "control.ca_file";
    let text = read(at, path).await?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match all.map_err(|error| failed(at, path, &error.to_string()))?.as_slice() {
        [one] => Ok(tls::pin(one)),
        [] => Err(failed(at, path, "holds no certificate in PEM")),
        _ => Err(failed(at, path, "holds more than one certificate")),
    }
}

async fn read(at: &str, path: &Path) -> Result<String, Status> {
    tokio::fs::read_to_string(path).await.map_err(|error| failed(at, path, &error.to_string()))
}

fn failed(at: &str, path: &Path, why: &str) -> Status {
    Status::failed_precondition(format!("{at}: {}: {why}", path.display()))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    #[tokio::test]
    async fn a_service_account_token_is_read_each_time_with_whom_it_may_be_shown_to() {
        let dir = tempfile::tempdir().unwrap();
        let (token, ca) = (dir.path().join("token"), dir.path().join("ca.pem"));
        let made = CertificateParams::default().self_signed(&KeyPair::generate().unwrap()).unwrap();
        std::fs::write(&ca, format!("# as shoalctl prints it\n{}", made.pem())).unwrap();
        std::fs::write(&token, "aaa.bbb.ccc\n").unwrap();
        let by = JoinBy::ServiceAccount { token: token.clone(), authority: Authority::File(ca.clone()) };
        let read = Invitation::read(&by).await.map_err(|status| status.to_string()).unwrap();
        assert_eq!((read.authority, read.token.as_str()), (tls::pin(made.der()), "aaa.bbb.ccc"));
        std::fs::write(&token, "ddd.e_e.f-f").unwrap();
        let pinned = JoinBy::ServiceAccount { token: token.clone(), authority: Authority::Sha256([7; 32]) };
        let read = Invitation::read(&pinned).await.map_err(|status| status.to_string()).unwrap();
        assert_eq!((read.authority, read.token.as_str()), ([7; 32], "ddd.e_e.f-f"));

        let why = async |by: &JoinBy| Invitation::read(by).await.map(drop).unwrap_err().message().to_owned();
        for bad in ["", "aaa.bbb", "aaa..ccc", "shoal-join.a.b.c", "aaa.b b.ccc"] {
            std::fs::write(&token, bad).unwrap();
            let why = why(&by).await;
            assert!(why.starts_with("control.service_account_token_file: ") && !why.contains("aaa"), "{why}");
        }
        for bad in ["", "nonsense", &made.pem().repeat(2)] {
            std::fs::write(&ca, bad).unwrap();
            let why = why(&by).await;
            assert!(why.starts_with("control.ca_file: "), "{why}");
        }
        let nowhere = JoinBy::Token(dir.path().join("gone"));
        assert!(why(&nowhere).await.starts_with("control.join_token_file: "));
    }
}
