//! Too many, too slow, garbage, and the end of the process.

use super::*;

#[tokio::test]
async fn a_connection_too_many_is_told_503_at_once() {
    let rig = Rig::with(|config| config.max_connections = 2).await;
    let idle = [TcpStream::connect(rig.addr).await.unwrap(), TcpStream::connect(rig.addr).await.unwrap()];
    let mut refused = 0;
    // The listener may take a moment to have seen both.
    for _ in 0..100 {
        let got = rig.ask("GET /v2/", &[]).await;
        if got.status == 503 {
            assert_eq!((got.code().as_str(), got.end), ("UNAVAILABLE", End::Fin));
            assert_eq!(got.header("connection"), Some("close"));
            refused += 1;
            break;
        }
    }
    assert_eq!(refused, 1);
    drop(idle);
    for _ in 0..500 {
        if rig.ask("GET /v2/", &[]).await.status == 200 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("its places never came free");
}

#[tokio::test]
async fn garbage_is_answered_or_closed_and_the_next_is_served() {
    let rig = Rig::start().await;
    let tls = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    let mut garbage: Vec<Vec<u8>> = vec![
        tls.to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        b"GET /v2/\r\n\r\n".to_vec(),
        b"GET  HTTP/1.1\r\n\r\n".to_vec(),
        vec![0; 5000],
        [b"GET /v2/ HTTP/1.1\r\n".to_vec(), b"x: y\r\n".repeat(1000)].concat(),
        [b"GET /".to_vec(), vec![b'a'; 1 << 20]].concat(),
    ];
    for seed in 0..50_u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        garbage.push(
            (0..300)
                .map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state as u8
                })
                .collect(),
        );
    }
    for bytes in garbage {
        let mut stream = TcpStream::connect(rig.addr).await.unwrap();
        // The mirror may close before all of it was written.
        let _ = stream.write_all(&bytes).await;
        let _ = stream.shutdown().await;
        let got = Raw::read(&mut stream).await;
        assert!(matches!(got.status, 0 | 400 | 404 | 405 | 414 | 431 | 505), "{}: {bytes:?}", got.status);
    }
    assert_eq!(rig.ask("GET /v2/", &[]).await.status, 200);
}

#[tokio::test]
async fn half_a_request_is_ended_and_gives_its_place_back() {
    let rig = Rig::with(|config| config.max_connections = 8).await;
    let mut half = Vec::new();
    for _ in 0..8 {
        let mut stream = TcpStream::connect(rig.addr).await.unwrap();
        stream.write_all(b"GET /v2/ HTTP/1.1\r\nhost: m\r\n").await.unwrap();
        half.push(stream);
    }
    for mut stream in half {
        let got = Raw::read(&mut stream).await;
        assert!(matches!(got.status, 0 | 408), "{}", got.status);
    }
    assert_eq!(rig.ask("GET /v2/", &[]).await.status, 200);
}

#[tokio::test]
async fn at_the_end_the_listener_closes_and_what_runs_is_finished() {
    let rig = Rig::start().await;
    let bytes = content(1);
    let digest = rig.shelve(&bytes, "");
    assert_eq!(rig.blob(&digest, &[]).await.status, 200);
    let mut running = TcpStream::connect(rig.addr).await.unwrap();
    let mut idle = TcpStream::connect(rig.addr).await.unwrap();
    let request = format!("GET /v2/lab/app/blobs/{digest}?{NS} HTTP/1.1\r\nhost: m\r\n\r\n");
    running.write_all(request.as_bytes()).await.unwrap();
    let mut first = [0; 16];
    running.read_exact(&mut first).await.unwrap();
    let addr = rig.addr;
    let ended = tokio::spawn(rig.trigger.drained(Duration::from_secs(10)));
    let rest = Raw::read(&mut running).await;
    assert_eq!(rest.end, End::Fin);
    assert!(rest.body.ends_with(&bytes[bytes.len() - 1000..]), "the running answer was cut");
    assert_eq!(Raw::read(&mut idle).await.end, End::Fin);
    assert!(ended.await.unwrap(), "something went on");
    for _ in 0..500 {
        if TcpStream::connect(addr).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the listener is still there");
}
