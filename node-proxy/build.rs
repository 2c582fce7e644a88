//! The server's side of containerd's content API: `containerd-client` has its messages and the client's side alone.
use tonic_build::manual::{Builder, Method, Service};

fn main() {
    let method = |name: &str, route: &str, input: &str, output: &str| {
        let messages = "::containerd_client::services::v1";
        let output = match output {
            // A path is needed.
            "()" => "crate::containerd::Empty".to_owned(),
            output => format!("{messages}::{output}"),
        };
        Method::builder()
            .name(name)
            .route_name(route)
            .input_type(format!("{messages}::{input}"))
            .output_type(output)
            .codec_path("::tonic_prost::ProstCodec")
    };
    // Source: api/services/content/v1/content.proto of containerd.
    let content = Service::builder()
        .name("Content")
        .package("containerd.services.content.v1")
        .method(method("info", "Info", "InfoRequest", "InfoResponse").build())
        .method(method("update", "Update", "UpdateRequest", "UpdateResponse").build())
        .method(method("list", "List", "ListContentRequest", "ListContentResponse").server_streaming().build())
        .method(method("delete", "Delete", "DeleteContentRequest", "()").build())
        .method(method("read", "Read", "ReadContentRequest", "ReadContentResponse").server_streaming().build())
        .method(method("status", "Status", "StatusRequest", "StatusResponse").build())
        .method(method("list_statuses", "ListStatuses", "ListStatusesRequest", "ListStatusesResponse").build())
        .method(
            method("write", "Write", "WriteContentRequest", "WriteContentResponse")
                .client_streaming()
                .server_streaming()
                .build(),
        )
        .method(method("abort", "Abort", "AbortRequest", "()").build())
        .build();
    Builder::new().build_client(false).compile(&[content]);
}
