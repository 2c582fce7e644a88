//! Connections that do not begin as HTTP/2 does are closed before the server spends anything on them.

use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;

/// RFC 9113 section 3.4.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A node sends it with its first packet.
const PATIENCE: Duration = Duration::from_secs(5);
/// Looking does not take bytes away, so the kernel can't tell when there are more than were seen: it is asked again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The connection, when it began as it must; nothing of it was read.
pub(super) async fn seen(socket: TcpStream) -> Option<TcpStream> {
    let until = Instant::now() + PATIENCE;
    let mut start = [0; PREFACE.len()];
    loop {
        let length = tokio::time::timeout_at(until, socket.peek(&mut start)).await.ok()?.ok()?;
        if length == 0 || start[..length] != PREFACE[..length] {
            return None;
        }
        if length == PREFACE.len() {
            return Some(socket);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
        if Instant::now() >= until {
            return None;
        }
    }
}
