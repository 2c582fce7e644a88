//! Certificates for nodes, and what a member's say of its registration.

use shoal_proto::control::v1 as wire;
use shoal_proto::identity::JoinToken;
use shoal_proto::{ClusterId, NodeId};
use tonic::{Request, Status};

use super::Parts;
use super::caller::{Gate, Shown, status};
use super::inbound::From;
use crate::identity::{Error, Identity, Issued, Reason, SigningRequest};
use crate::nodes::{Registration, Role};

/// The request of a P-256 key has some 250 bytes.
const LONGEST_REQUEST: usize = 4096;
/// A service account token has some 1,200 bytes.
const LONGEST_TOKEN: usize = 16 << 10;

/// A node's first certificate, or one for a member whose certificate is over.
pub(super) async fn join(parts: &Parts, request: Request<wire::JoinRequest>) -> Result<wire::Certified, Status> {
    let gate = &parts.gate;
    let identity = gate.identity().ok_or_else(unsecured)?.clone();
    let from = request.extensions().get::<From>().map_or_else(|| "unknown".to_owned(), |from| from.addr.clone());
    let wire::JoinRequest { node_id, signing_request, token } = request.into_inner();
    let node: NodeId = node_id.parse().map_err(|error| Status::invalid_argument(format!("node_id: {error}")))?;
    let signing = signing(&signing_request)?;
    if token.len() > LONGEST_TOKEN {
        return Err(Status::invalid_argument(format!("token: longer than {LONGEST_TOKEN} bytes")));
    }
    let issued = if token.is_empty() {
        identity.come_back(node, &signing).await
    } else if is_account(&token) {
        identity.join_by_account(&token, node, &signing, |name| parts.nodes.cluster_named(name)).await
    } else {
        let token: JoinToken = token.parse().map_err(|error| Status::invalid_argument(format!("token: {error}")))?;
        identity.join(&token, node, &signing).await
    };
    issued.map(|issued| certified(&identity, issued)).map_err(|error| refused(gate, &error, &from))
}

/// Whether it looks like a token of Kubernetes: a JSON Web Signature has three parts, a join token of ours has four.
fn is_account(token: &str) -> bool {
    token.split('.').count() == 3
}

/// Another certificate for the node of a session.
pub(super) async fn certify(parts: &Parts, request: Request<wire::CertifyRequest>) -> Result<wire::Certified, Status> {
    let identity = parts.gate.identity().ok_or_else(unsecured)?;
    let shown = parts.gate.node(&request)?;
    let from = request.extensions().get::<From>().map_or_else(|| "unknown".to_owned(), |from| from.addr.clone());
    let wire::CertifyRequest { session, signing_request } = request.into_inner();
    let node = parts.node_of(&session, shown.as_ref());
    let node = node.ok_or_else(|| Status::not_found("session: unknown or ended"))?;
    let cluster: Option<ClusterId> = parts.nodes.cluster_of(&node);
    let issued = identity.certify(node, cluster, &signing(&signing_request)?).await;
    issued.map(|issued| certified(identity, issued)).map_err(|error| refused(&parts.gate, &error, &from))
}

/// Brings what a node says of itself together with what its certificate and its membership say.
pub(super) async fn bind(gate: &Gate, shown: Option<&Shown>, who: &mut Registration) -> Result<(), Status> {
    let (Some(identity), Some(Shown { bearer, key })) = (gate.identity(), shown) else { return Ok(()) };
    if bearer.id.node() != Some(&who.node) {
        let why = format!("node_id: the certificate is that of {}, not of node {}", bearer.id, who.node);
        gate.refuse(Some(Reason::Name), &why, who.node.as_str());
        return Err(Status::permission_denied(why));
    }
    let member = identity.member_by(&who.node, key).await.map_err(|error| refused(gate, &error, who.node.as_str()))?;
    if who.role == Role::Seed && !member.seed {
        let why =
            "role: this node joined by a token that lets nobody be a seed (shoalctl join-token create --role seed)";
        gate.refuse(None, why, who.node.as_str());
        return Err(Status::permission_denied(why));
    }
    who.bound = member.cluster;
    Ok(())
}

fn signing(der: &[u8]) -> Result<SigningRequest, Status> {
    if der.len() > LONGEST_REQUEST {
        return Err(Status::invalid_argument(format!("signing_request: longer than {LONGEST_REQUEST} bytes")));
    }
    SigningRequest::parse(der).map_err(|error| Status::invalid_argument(format!("signing_request: {error}")))
}

fn certified(identity: &Identity, issued: Issued) -> wire::Certified {
    wire::Certified {
        certificate: issued.certificate.to_vec(),
        authorities: vec![identity.authority().certificate().to_vec()],
        trust_domain: identity.authority().trust_domain().to_string(),
    }
}

fn refused(gate: &Gate, error: &Error, from: &str) -> Status {
    let why = match error {
        Error::Unvouched(unvouched) => unvouched.hidden().map(|hidden| format!("{error}: {hidden}")),
        _ => None,
    };
    gate.refuse(Reason::of_error(error), &why.unwrap_or_else(|| error.to_string()), from);
    status(error)
}

fn unsecured() -> Status {
    Status::failed_precondition("this control service runs with tls = \"off\" and certifies nobody")
}
