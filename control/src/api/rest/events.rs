//! `GET /api/v1/events`: what happens, as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream;
use serde::{Deserialize, Serialize};
use shoal_proto::{ClusterId, NodeId};
use tokio::sync::{OwnedSemaphorePermit, watch};
use utoipa::{IntoParams, ToSchema};

use super::Parts;
use super::caller::{Viewer, reaches};
use super::document::Reading;
use super::extract::Query;
use super::feed::{Became, Missed, What};
use super::preheats::{self, PreheatState, full_name};
use super::problem::Problem;
use crate::identity::Caller;

/// Events that are written at a time.
const BATCH: usize = 256;
/// How often a quiet stream says that it lives, and whether its token still counts is looked at.
const ALIVE: Duration = Duration::from_secs(5);
/// The header with which a browser comes back.
const LAST: &str = "last-event-id";

/// Something that happened. The stream's `event` is its `kind`, its `id` is for `Last-Event-ID`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "kind")]
pub(super) enum EventView {
    /// What is known of before is not enough: list again. The first event, unless the stream goes on where it stopped.
    #[serde(rename = "reset")]
    Reset {},
    /// A node's session began.
    #[serde(rename = "node.joined")]
    NodeJoined {
        #[schema(value_type = String)]
        node: NodeId,
        name: String,
        /// Null: it runs alone.
        #[schema(required = true)]
        cluster: Option<String>,
    },
    /// A node belongs elsewhere. A cluster that the token does not reach is null.
    #[serde(rename = "node.moved")]
    NodeMoved {
        #[schema(value_type = String)]
        node: NodeId,
        name: String,
        #[schema(required = true)]
        from: Option<String>,
        #[schema(required = true)]
        to: Option<String>,
    },
    /// A node is gone.
    #[serde(rename = "node.left")]
    NodeLeft {
        #[schema(value_type = String)]
        node: NodeId,
        name: String,
        #[schema(required = true)]
        cluster: Option<String>,
    },
    /// A cluster was made.
    #[serde(rename = "cluster.created")]
    ClusterCreated { cluster: String, version: u64 },
    /// A cluster was changed.
    #[serde(rename = "cluster.updated")]
    ClusterUpdated { cluster: String, version: u64 },
    /// A cluster is gone.
    #[serde(rename = "cluster.deleted")]
    ClusterDeleted { cluster: String },
    /// A node looks for a blob.
    #[serde(rename = "flight.began")]
    FlightBegan {
        #[schema(value_type = String)]
        node: NodeId,
        name: String,
        cluster: String,
        digest: String,
        /// Null: the node does not know it yet.
        #[schema(required = true)]
        size: Option<u64>,
    },
    /// It does no more.
    #[serde(rename = "flight.ended")]
    FlightEnded {
        #[schema(value_type = String)]
        node: NodeId,
        name: String,
        cluster: String,
        digest: String,
        /// It has the whole.
        complete: bool,
    },
    /// A preheat was made, or is tried again.
    #[serde(rename = "preheat.began")]
    PreheatBegan {
        /// Its id.
        id: String,
        image: String,
        cluster: String,
    },
    /// A preheat ended. Its progress is no event.
    #[serde(rename = "preheat.ended")]
    PreheatEnded {
        id: String,
        image: String,
        cluster: String,
        /// How.
        state: PreheatState,
        /// Why it failed, or null.
        #[schema(required = true)]
        why: Option<String>,
    },
    /// A join token was made. Only for those who may list them.
    #[serde(rename = "join-token.created")]
    JoinTokenCreated {
        /// Its id; never its secret.
        id: String,
        /// The cluster that it binds nodes to; null: to none.
        #[schema(required = true)]
        cluster: Option<String>,
    },
    /// A join token was deleted by somebody. Those of a cluster that is deleted go with it, without a word.
    #[serde(rename = "join-token.deleted")]
    JoinTokenDeleted {
        id: String,
        #[schema(required = true)]
        cluster: Option<String>,
    },
    /// An API token was made. Only for those who may list them.
    #[serde(rename = "api-token.created")]
    ApiTokenCreated {
        /// Its id; never its secret.
        id: String,
        name: String,
    },
    /// An API token was deleted.
    #[serde(rename = "api-token.deleted")]
    ApiTokenDeleted { id: String, name: String },
    /// A node became a member: by a token, for the first time or anew.
    #[serde(rename = "member.joined")]
    MemberJoined {
        #[schema(value_type = String)]
        node: NodeId,
        /// The cluster that it is bound to, else the one that it is live in; null: none.
        #[schema(required = true)]
        cluster: Option<String>,
    },
    /// A member was revoked.
    #[serde(rename = "member.revoked")]
    MemberRevoked {
        #[schema(value_type = String)]
        node: NodeId,
        #[schema(required = true)]
        cluster: Option<String>,
    },
    /// A member was forgotten: its id may join anew.
    #[serde(rename = "member.deleted")]
    MemberDeleted {
        #[schema(value_type = String)]
        node: NodeId,
        #[schema(required = true)]
        cluster: Option<String>,
    },
}

impl EventView {
    const fn kind(&self) -> &'static str {
        match self {
            Self::Reset {} => "reset",
            Self::NodeJoined { .. } => "node.joined",
            Self::NodeMoved { .. } => "node.moved",
            Self::NodeLeft { .. } => "node.left",
            Self::ClusterCreated { .. } => "cluster.created",
            Self::ClusterUpdated { .. } => "cluster.updated",
            Self::ClusterDeleted { .. } => "cluster.deleted",
            Self::FlightBegan { .. } => "flight.began",
            Self::FlightEnded { .. } => "flight.ended",
            Self::PreheatBegan { .. } => "preheat.began",
            Self::PreheatEnded { .. } => "preheat.ended",
            Self::JoinTokenCreated { .. } => "join-token.created",
            Self::JoinTokenDeleted { .. } => "join-token.deleted",
            Self::ApiTokenCreated { .. } => "api-token.created",
            Self::ApiTokenDeleted { .. } => "api-token.deleted",
            Self::MemberJoined { .. } => "member.joined",
            Self::MemberRevoked { .. } => "member.revoked",
            Self::MemberDeleted { .. } => "member.deleted",
        }
    }
}

/// What events are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
enum About {
    /// Nodes.
    Node,
    /// Clusters.
    Cluster,
    /// Flights.
    Flight,
    /// Preheats.
    Preheat,
    /// Join tokens.
    JoinToken,
    /// API tokens.
    ApiToken,
    /// Members.
    Member,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct EventsQuery {
    /// Only events of this cluster, by name or id.
    #[param(max_length = 256, nullable = false)]
    cluster: Option<String>,
    /// Only events about these.
    #[param(inline, nullable = false)]
    about: Option<About>,
}

struct Listener {
    parts: Parts,
    caller: Caller,
    cluster: Option<ClusterId>,
    about: Option<About>,
    /// The number of the next event.
    next: u64,
    waiting: VecDeque<(u64, EventView)>,
    latest: watch::Receiver<u64>,
    _place: OwnedSemaphorePermit,
}

/// What happens, from now on
///
/// Server-sent events; `data` is an event as JSON. The first is `reset`: list what is there, the events tell what changes. Whoever comes
/// back with `Last-Event-ID` goes on where it stopped if that is not too long ago; else, and when it is too slow, it is told `reset` again.
#[utoipa::path(get, path = "/api/v1/events", operation_id = "follow_events", tag = "events", security(("token" = [])),
    params(EventsQuery, ("Last-Event-ID" = Option<String>, Header, nullable = false, description = "The `id` of the last event that was seen.")),
    responses((status = 200, description = "A stream without end.", content_type = "text/event-stream", body = EventView), Reading))]
pub(super) async fn follow(
    Viewer(caller): Viewer,
    State(parts): State<Parts>,
    Query(query): Query<EventsQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let cluster = query.cluster.as_deref().map(|name| parts.filter(&caller, name)).transpose()?;
    let place = parts.feed.listeners.clone().try_acquire_owned().map_err(|_| {
        let why = "as many listen already as this service lets listen at a time";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, why)
    })?;
    // Before the number is read: what happens in between is not slept through.
    let latest = parts.feed.latest();
    let seen = headers.get(LAST).and_then(|value| value.to_str().ok()).and_then(|id| parts.feed.behind(id));
    let now = parts.feed.now();
    let mut waiting = VecDeque::new();
    if seen.is_none() {
        waiting.push_back((now.wrapping_sub(1), EventView::Reset {}));
    }
    let next = seen.unwrap_or(now);
    let listener = Listener { parts, caller, cluster, about: query.about, next, waiting, latest, _place: place };
    let events = stream::unfold(listener, |mut listener| async move {
        let event = listener.next().await?;
        Some((Ok::<_, Infallible>(event), listener))
    });
    let alive = KeepAlive::new().interval(ALIVE);
    // Proxies would wait for a full buffer.
    Ok(([("x-accel-buffering", "no"), ("cache-control", "no-store")], Sse::new(events).keep_alive(alive))
        .into_response())
}

impl Listener {
    /// `None`: this service ends, or the token does not count any more.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if self.parts.drain.is_signalled() || !self.parts.access.counts(&self.caller) {
                return None;
            }
            if let Some((number, event)) = self.waiting.pop_front() {
                let data = serde_json::to_string(&event).expect("an event is texts and numbers");
                return Some(Event::default().event(event.kind()).id(self.parts.feed.id(number)).data(data));
            }
            self.latest.borrow_and_update();
            match self.parts.feed.since(self.next, BATCH) {
                Missed::TooMuch(next) => {
                    self.next = next;
                    self.waiting.push_back((next.wrapping_sub(1), EventView::Reset {}));
                }
                Missed::Events(events, next) if next > self.next => {
                    self.next = next;
                    let shown = events.iter().filter_map(|(number, what)| Some((*number, self.show(what)?)));
                    let shown: Vec<_> = shown.collect();
                    self.waiting.extend(shown);
                }
                Missed::Events(..) => {
                    let drain = self.parts.drain.clone();
                    tokio::select! {
                        changed = self.latest.changed() => changed.ok()?,
                        () = tokio::time::sleep(ALIVE) => {}
                        () = drain.signalled() => return None,
                    }
                }
            }
        }
    }

    /// `None`: it is not for this listener.
    fn show(&self, what: &What) -> Option<EventView> {
        let about = match what {
            What::Joined { .. } | What::Moved { .. } | What::Left { .. } => About::Node,
            What::Created { .. } | What::Updated { .. } | What::Deleted { .. } => About::Cluster,
            What::Began { .. } | What::Ended { .. } => About::Flight,
            What::Preheat { .. } => About::Preheat,
            What::JoinToken { .. } => About::JoinToken,
            What::ApiToken { .. } => About::ApiToken,
            What::Member { .. } => About::Member,
        };
        let clusters = what.clusters();
        let wanted = self.about.is_none_or(|wanted| wanted == about)
            && self.caller.role >= what.least()
            && clusters.iter().any(|cluster| reaches(&self.caller, *cluster).is_ok())
            && self.cluster.as_ref().is_none_or(|wanted| clusters.contains(&Some(wanted)));
        if !wanted {
            return None;
        }
        let set = self.parts.clusters.current();
        let id_or_name = |id: &ClusterId| set.get(id).map_or_else(|| id.to_string(), |cluster| cluster.name.clone());
        let name = |id: &Option<ClusterId>| id.as_ref().filter(|id| self.caller.reaches(id)).map(id_or_name);
        Some(match what.clone() {
            What::Preheat { id, image, cluster, ended } => {
                let (image, cluster) = (full_name(&image), id_or_name(&cluster));
                match ended.as_ref().map(preheats::name) {
                    None => EventView::PreheatBegan { id, image, cluster },
                    Some((state, why)) => EventView::PreheatEnded { id, image, cluster, state, why },
                }
            }
            What::Joined { node, name: host, cluster } => {
                EventView::NodeJoined { node, name: host, cluster: name(&cluster) }
            }
            What::Moved { node, name: host, from, to } => {
                EventView::NodeMoved { node, name: host, from: name(&from), to: name(&to) }
            }
            What::Left { node, name: host, cluster } => {
                EventView::NodeLeft { node, name: host, cluster: name(&cluster) }
            }
            What::Created { cluster } => {
                EventView::ClusterCreated { cluster: cluster.name.clone(), version: cluster.version }
            }
            What::Updated { cluster } => {
                EventView::ClusterUpdated { cluster: cluster.name.clone(), version: cluster.version }
            }
            What::Deleted { cluster } => EventView::ClusterDeleted { cluster: cluster.name.clone() },
            What::Began { node, name: host, cluster, digest, size } => EventView::FlightBegan {
                node,
                name: host,
                cluster: id_or_name(&cluster),
                digest: digest.to_string(),
                size,
            },
            What::Ended { node, name: host, cluster, digest, complete } => EventView::FlightEnded {
                node,
                name: host,
                cluster: id_or_name(&cluster),
                digest: digest.to_string(),
                complete,
            },
            What::JoinToken { id, cluster, made: true } => EventView::JoinTokenCreated { id, cluster: name(&cluster) },
            What::JoinToken { id, cluster, made: false } => EventView::JoinTokenDeleted { id, cluster: name(&cluster) },
            What::ApiToken { id, name, made: true } => EventView::ApiTokenCreated { id, name },
            What::ApiToken { id, name, made: false } => EventView::ApiTokenDeleted { id, name },
            What::Member { node, cluster, became } => {
                let cluster = name(&cluster);
                match became {
                    Became::Joined => EventView::MemberJoined { node, cluster },
                    Became::Revoked => EventView::MemberRevoked { node, cluster },
                    Became::Removed => EventView::MemberDeleted { node, cluster },
                }
            }
        })
    }
}
