//! Bodies that the kernel takes from the store's files.

use super::*;
use crate::store::{self, Disk};

/// A mirror whose store is on a disk, in a directory that goes with it.
async fn on_disk() -> (Rig, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let config = store::Config { dir: dir.path().join("store"), quota: 0, reserve: 0, boot_id: None, claims: false };
    (Rig::on(Disk::open(config).await.unwrap(), |_| ()).await, dir)
}

fn large(seed: u8) -> Bytes {
    (0..24 << 20_usize).map(|at| (at / 251) as u8 ^ (at as u8).wrapping_mul(31) ^ seed).collect::<Vec<u8>>().into()
}

#[tokio::test]
async fn every_byte_is_right_while_the_blob_flies_and_when_it_is_held() {
    let (rig, _dir) = on_disk().await;
    let bytes = large(1);
    let digest = rig.shelve(&bytes, "");
    let (one, two) = tokio::join!(rig.blob(&digest, &[]), rig.blob(&digest, &[]));
    eventually("it is held", || rig.store.held(&digest).is_some()).await;
    for got in [one, two, rig.blob(&digest, &[]).await] {
        assert_eq!((got.status, got.end), (200, End::Fin));
        assert!(got.body == bytes);
    }
    for (from, to) in [(0, 0), (1, 5_000_000), (1 << 20, (2 << 20) - 1), (bytes.len() - 3, bytes.len() - 1)] {
        let got = rig.blob(&digest, &[("range", &format!("bytes={from}-{to}"))]).await;
        assert_eq!(got.end, End::Fin);
        assert!(got.body == bytes[from..=to], "{from} to {to}: {} bytes", got.body.len());
    }
    assert_eq!(rig.gets(), 1);
}

#[tokio::test]
async fn answers_on_one_connection_do_not_mix() {
    let (rig, _dir) = on_disk().await;
    let (one, two) = (large(2), content(3));
    let digests = [rig.shelve(&one, ""), rig.shelve(&two, "")];
    for digest in &digests {
        rig.blob(digest, &[]).await;
    }
    let mut stream = TcpStream::connect(rig.addr).await.unwrap();
    // All at once: hyper answers them in their order.
    let mut text = String::new();
    for (digest, last) in [(digests[0], ""), (digests[1], ""), (digests[0], "connection: close\r\n")] {
        text.push_str(&format!("GET /v2/lab/app/blobs/{digest}?{NS} HTTP/1.1\r\nhost: mirror\r\n{last}\r\n"));
    }
    stream.write_all(text.as_bytes()).await.unwrap();
    let got = Raw::read(&mut stream).await;
    let mut rest = &got.body[..];
    for (wanted, more) in [(&one, true), (&two, true), (&one, false)] {
        assert!(rest[..wanted.len()] == wanted[..]);
        rest = &rest[wanted.len()..];
        if more {
            assert!(rest.starts_with(b"HTTP/1.1 200"));
            let head = rest.windows(4).position(|part| part == b"\r\n\r\n").unwrap();
            rest = &rest[head + 4..];
        }
    }
    assert!(rest.is_empty());
}

#[tokio::test]
async fn i7_a_file_that_is_cut_from_outside_ends_the_body_in_a_fin() {
    let (rig, dir) = on_disk().await;
    let bytes = large(4);
    let digest = rig.shelve(&bytes, "");
    rig.blob(&digest, &[]).await;
    eventually("it is held", || rig.store.held(&digest).is_some()).await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(64 << 10).unwrap();
    let mut stream = socket.connect(rig.addr).await.unwrap();
    let request = format!("GET /v2/lab/app/blobs/{digest}?{NS} HTTP/1.1\r\nhost: mirror\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.readable().await.unwrap();
    let hex = digest.hex();
    let path = dir.path().join("store/held").join(&hex[..2]).join(&hex[2..]);
    let kept = 20 << 20;
    std::fs::File::options().write(true).open(path).unwrap().set_len(kept).unwrap();
    let got = Raw::read(&mut stream).await;
    assert_eq!((got.status, got.end), (200, End::Fin));
    assert!(got.body.len() <= kept as usize && got.body == bytes[..got.body.len()], "{} bytes", got.body.len());
    assert!(got.body.len() > 1 << 20);
}
