//! The description of the API (OpenAPI 3.1): made of the handlers' own types, so that it says what they do.

use std::collections::BTreeMap;

use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::response::ResponseBuilder;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder, Ref, RefOr, Required, Response, Schema};
use utoipa::{IntoResponses, ToSchema};

use super::problem::Problem;

/// Where it is served.
pub(super) const ADDRESS: &str = "/api/v1/openapi.json";
/// What handlers call the API token.
const SCHEME: &str = "token";

/// What is true of all routes. The routes add themselves.
pub(super) fn base() -> OpenApi {
    let license = LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0"));
    let info = InfoBuilder::new()
        .title("shoal-control")
        .version(env!("CARGO_PKG_VERSION"))
        .license(Some(license.build()))
        .description(Some(
            "Clusters and scopes, live nodes, who holds and who fetches what, preheats, tokens, members and the audit log.\n\n\
             Every request shows an API token. A viewer reads; an operator changes clusters and lets nodes in and out; an admin makes \
             API tokens and reads the audit log. A token may be kept to some clusters. What is wrong is told as a problem document \
             (RFC 9457) that names each field at fault. Lists come in pages: `next` of one is `after` of the next. A change \
             of something that is there says in `If-Match` which state of it it is about.",
        ));
    let mut api = OpenApiBuilder::new().info(info.build()).build();
    let components = api.components.get_or_insert_default();
    let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    components.security_schemes.insert(SCHEME.to_owned(), RefOr::T(bearer));
    let mut schemas = Vec::new();
    Problem::schemas(&mut schemas);
    schemas.push((Problem::name().into_owned(), <Problem as utoipa::PartialSchema>::schema()));
    components.schemas.extend(schemas);
    api
}

/// A body that may be left out is described as one that is not required, rather than as one that may be null.
pub(super) fn optional_bodies(api: &mut OpenApi) {
    for path in api.paths.paths.values_mut() {
        let body = path.post.as_mut().and_then(|operation| operation.request_body.as_mut());
        let Some(RefOr::T(body)) = body else { continue };
        for content in body.content.values_mut() {
            let RefOr::T(content) = content else { continue };
            if let Some(RefOr::T(Schema::OneOf(choice))) = &content.schema
                && let Some(named) = choice.items.iter().find(|one| matches!(one, RefOr::Ref(_)))
            {
                content.schema = Some(named.clone());
                body.required = Some(Required::False);
            }
        }
    }
}

fn described(status: u16) -> &'static str {
    match status {
        400 => "A field is wrong, or is not known.",
        401 => "No API token, or one that is not known or over.",
        403 => "The API token's role or its clusters don't reach this.",
        404 => "There is no such thing, or not within reach of the API token.",
        409 => "It is in use, or this service can't do it as it is configured.",
        412 => "It was changed since it was read.",
        413 => "The body is too large.",
        415 => "The body is not application/json.",
        428 => "It is not said in If-Match which state this is about.",
        _ => "This service can't do it now.",
    }
}

fn problems(statuses: &[u16]) -> BTreeMap<String, RefOr<Response>> {
    let one = |status: &u16| {
        let schema = Ref::from_schema_name(Problem::name());
        let content = ContentBuilder::new().schema(Some(schema)).build();
        let response = ResponseBuilder::new().description(described(*status));
        (status.to_string(), RefOr::T(response.content("application/problem+json", content).build()))
    };
    // Said by what reads HTTP, before anything of ours: it has no body.
    let long = ResponseBuilder::new().description("The address or the headers are too long.").build();
    statuses.iter().map(one).chain([("431".to_owned(), RefOr::T(long))]).collect()
}

macro_rules! problems {
    ($($(#[$doc:meta])* $name:ident: $($status:literal)*;)*) => {
        $(
            $(#[$doc])*
            pub(super) struct $name;

            impl IntoResponses for $name {
                fn responses() -> BTreeMap<String, RefOr<Response>> {
                    problems(&[$($status),*])
                }
            }
        )*
    };
}

problems! {
    /// How reading a list can fail.
    Reading: 400 401 403 503;
    /// How reading one thing can fail.
    Finding: 400 401 403 404 503;
    /// How reading what needs the authority of the nodes can fail.
    ReadingIdentity: 400 401 403 409 503;
    /// How reading one such thing can fail.
    FindingIdentity: 400 401 403 404 409 503;
    /// How a question with a body can fail.
    Asking: 400 401 403 413 415 503;
    /// How making something can fail.
    Making: 400 401 403 409 413 415 503;
    /// How changing something with a body can fail.
    Changing: 400 401 403 404 409 412 413 415 428 503;
    /// How bringing about a whole set can fail.
    Applying: 400 401 403 409 412 413 415 428 503;
    /// How changing or removing something without a body can fail.
    Removing: 400 401 403 404 409 412 428 503;
}
