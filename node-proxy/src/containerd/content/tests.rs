//! The ten calls over a real socket, by containerd's own client.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use containerd_client::services::v1 as wire;
use futures::StreamExt as _;
use hyper_util::rt::TokioIo;
use sha2::{Digest as _, Sha256};
use shoal_base::drain::{self, Trigger};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};
use wire::WriteAction::{Commit, Stat, Write};
use wire::content_client::ContentClient;

use super::{Metrics, Plugin};
use crate::containerd::{Config, Removed};
use crate::store::{self, Disk, Store as _};

struct Served {
    disk: Arc<Disk>,
    client: ContentClient<Channel>,
    end: Trigger,
    _dir: tempfile::TempDir,
}

async fn served() -> Served {
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let config = store::Config { dir: dir.path().join("store"), quota: 0, reserve: 0, boot_id: None, claims: true };
    let disk = Disk::open(config).await.unwrap();
    let path = dir.path().join("content.sock");
    let config = Config {
        address: dir.path().join("none.sock"),
        root: dir.path().to_owned(),
        listen: None,
        content_listen: Some(path.clone()),
        state_dir: dir.path().to_owned(),
        hash_rate: 0,
        removed: Removed::Keep,
        content_link: false,
        hosts_dir: dir.path().to_owned(),
    };
    let (store, me) = (Arc::clone(&disk) as Arc<dyn store::Content>, "me".parse().unwrap());
    let plugin = Plugin::listen(config, &path, store, me, Metrics::default()).await.unwrap();
    let (end, drain) = drain::channel();
    tokio::spawn(plugin.run(drain));
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(path).await?)) }
    });
    let channel = Endpoint::from_static("http://content").connect_with_connector(connector).await.unwrap();
    let client = ContentClient::new(channel).max_decoding_message_size(64 << 20).max_encoding_message_size(64 << 20);
    Served { disk, client, end, _dir: dir }
}

fn name(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// An open `Write` stream.
struct Writer {
    requests: mpsc::UnboundedSender<wire::WriteContentRequest>,
    answers: Streaming<wire::WriteContentResponse>,
}

impl Served {
    async fn writer(&self) -> Writer {
        let (requests, sent) = mpsc::unbounded_channel();
        let answers = self.client.clone().write(UnboundedReceiverStream::new(sent)).await.unwrap().into_inner();
        Writer { requests, answers }
    }

    /// A stream that has said STAT.
    async fn begin(&self, reference: &str, total: i64) -> Result<(Writer, wire::WriteContentResponse), Status> {
        let mut writer = self.writer().await;
        let stat = wire::WriteContentRequest { r#ref: reference.into(), total, ..Default::default() };
        let answer = writer.say(Stat, stat).await?;
        Ok((writer, answer))
    }

    async fn put(&self, bytes: &[u8]) -> String {
        let (mut writer, _) = self.begin(&name(bytes), 0).await.unwrap();
        let all = wire::WriteContentRequest { data: bytes.to_vec(), ..Default::default() };
        writer.say(Commit, all).await.unwrap().digest
    }

    async fn read(&self, digest: &str, offset: i64, size: i64) -> Result<Vec<u8>, Status> {
        let request = wire::ReadContentRequest { digest: digest.into(), offset, size };
        let mut parts = self.client.clone().read(request).await?.into_inner();
        let mut bytes = Vec::new();
        while let Some(part) = parts.message().await? {
            assert_eq!(part.offset, offset.max(0) + bytes.len() as i64);
            bytes.extend(part.data);
        }
        Ok(bytes)
    }

    async fn list(&self, filters: &[&str]) -> Result<Vec<wire::Info>, Status> {
        let filters = filters.iter().map(|filter| (*filter).to_owned()).collect();
        let mut parts = self.client.clone().list(wire::ListContentRequest { filters }).await?.into_inner();
        let mut infos = Vec::new();
        while let Some(part) = parts.message().await? {
            infos.extend(part.info);
        }
        Ok(infos)
    }

    async fn info(&self, digest: &str) -> Result<wire::Info, Status> {
        let answer = self.client.clone().info(wire::InfoRequest { digest: digest.into() }).await?;
        Ok(answer.into_inner().info.unwrap())
    }

    async fn statuses(&self) -> Vec<wire::Status> {
        let answer = self.client.clone().list_statuses(wire::ListStatusesRequest::default()).await;
        answer.unwrap().into_inner().statuses
    }
}

impl Writer {
    async fn say(
        &mut self,
        action: wire::WriteAction,
        request: wire::WriteContentRequest,
    ) -> Result<wire::WriteContentResponse, Status> {
        self.requests.send(wire::WriteContentRequest { action: action as i32, ..request }).unwrap();
        self.answers.message().await.map(|answer| answer.expect("an answer to each message"))
    }

    async fn write(&mut self, offset: usize, data: &[u8]) -> Result<wire::WriteContentResponse, Status> {
        let request = wire::WriteContentRequest { offset: offset as i64, data: data.to_vec(), ..Default::default() };
        self.say(Write, request).await
    }
}

fn code<T: std::fmt::Debug>(answer: Result<T, Status>) -> Code {
    answer.expect_err("it is refused").code()
}

#[tokio::test]
async fn a_blob_is_written_and_read_and_every_answer_says_how_far_it_is() {
    let served = served().await;
    let bytes: Vec<u8> = (0..3_500_000u32).map(|at| (at / 7) as u8).collect();
    let (mut writer, stat) = served.begin("ref", bytes.len() as i64).await.unwrap();
    assert_eq!((stat.offset, stat.total, stat.digest.as_str()), (0, 3_500_000, name(b"").as_str()));
    let half = writer.write(0, &bytes[..2_000_000]).await.unwrap();
    assert_eq!((half.offset, &half.digest), (2_000_000, &name(&bytes[..2_000_000])));
    let status = &served.statuses().await[0];
    assert_eq!((status.r#ref.as_str(), status.offset, status.total), ("ref", 2_000_000, 3_500_000));
    assert!(served.list(&[]).await.unwrap().is_empty());
    writer.write(2_000_000, &bytes[2_000_000..]).await.unwrap();
    let labels = HashMap::from([("k".to_owned(), "v".to_owned())]);
    let commit = wire::WriteContentRequest {
        offset: 3_500_000,
        total: 3_500_000,
        expected: name(&bytes),
        labels: labels.clone(),
        ..Default::default()
    };
    let done = writer.say(Commit, commit).await.unwrap();
    assert_eq!((done.offset, &done.digest), (3_500_000, &name(&bytes)));
    assert!(writer.answers.message().await.unwrap().is_none(), "the stream ends with the commit");
    let info = served.info(&done.digest).await.unwrap();
    assert_eq!((info.size, info.labels), (3_500_000, labels));
    for (offset, size, want) in [
        (0, 0, &bytes[..]),
        (-5, -1, &bytes[..]),
        (5, 10, &bytes[5..15]),
        (3_499_999, 100, &bytes[3_499_999..]),
        (3_500_000, 1, &[]),
        (100, 2_500_000, &bytes[100..2_500_100]),
    ] {
        assert!(served.read(&done.digest, offset, size).await.unwrap() == want, "{offset} {size}");
    }
    assert_eq!(code(served.read(&done.digest, 3_500_001, 1).await), Code::OutOfRange);
    assert!(served.statuses().await.is_empty());
}

#[tokio::test]
async fn what_is_wrong_has_the_code_that_containerd_goes_by() {
    let served = served().await;
    let one = served.put(b"one").await;
    assert_eq!(code(served.info("sha256:xyz").await), Code::InvalidArgument);
    assert_eq!(code(served.info(&format!("sha512:{}", "a".repeat(128))).await), Code::NotFound);
    assert_eq!(code(served.info(&name(b"none")).await), Code::NotFound);
    assert_eq!(code(served.read(&name(b"none"), 0, 0).await), Code::NotFound);
    assert_eq!(code(served.begin("", 0).await.map(|_| ())), Code::InvalidArgument);
    let status = served.client.clone().status(wire::StatusRequest { r#ref: "none".into() }).await;
    assert_eq!(code(status), Code::NotFound);
    let abort = served.client.clone().abort(wire::AbortRequest { r#ref: "none".into() }).await;
    assert_eq!(code(abort), Code::NotFound);
    assert_eq!(code(served.list(&["a=="]).await), Code::InvalidArgument);

    let (mut writer, _) = served.begin("ref", 0).await.unwrap();
    writer.write(0, b"on").await.unwrap();
    assert_eq!(code(writer.write(5, b"x").await), Code::OutOfRange);
    let (mut writer, stat) = served.begin("ref", 0).await.unwrap();
    assert_eq!(stat.offset, 2, "what was refused changed nothing");
    let wrong = wire::WriteContentRequest { offset: 2, total: 7, ..Default::default() };
    assert_eq!(code(writer.say(Commit, wrong).await), Code::FailedPrecondition);
    let (mut writer, _) = served.begin("ref", 0).await.unwrap();
    let wrong = wire::WriteContentRequest { offset: 2, expected: name(b"other"), ..Default::default() };
    assert_eq!(code(writer.say(Commit, wrong).await), Code::FailedPrecondition);
    let (mut writer, stat) = served.begin("ref", 0).await.unwrap();
    assert_eq!(stat.offset, 2);
    // At 0 it begins anew; what it becomes is there already.
    writer.write(0, b"one").await.unwrap();
    assert_eq!(
        code(writer.say(Commit, wire::WriteContentRequest { offset: 3, ..Default::default() }).await),
        Code::AlreadyExists
    );
    assert!(served.statuses().await.is_empty());
    let mut writer = served.writer().await;
    let held = wire::WriteContentRequest { r#ref: "again".into(), expected: one, ..Default::default() };
    assert_eq!(code(writer.say(Stat, held).await), Code::AlreadyExists);
}

#[tokio::test]
async fn a_reference_is_locked_while_its_stream_is_open_and_no_longer() {
    let served = served().await;
    let (mut writer, _) = served.begin("ref", 0).await.unwrap();
    writer.write(0, &[1; 100_000]).await.unwrap();
    assert_eq!(code(served.begin("ref", 0).await.map(|_| ())), Code::Unavailable);
    // The client vanishes in the middle of a write.
    let request = wire::WriteContentRequest {
        action: Write as i32,
        offset: 100_000,
        data: vec![2; 4 << 20],
        ..Default::default()
    };
    writer.requests.send(request).unwrap();
    drop(writer);
    let (mut writer, stat) = served.begin("ref", 0).await.unwrap();
    assert!([100_000, 100_000 + (4 << 20)].contains(&stat.offset), "{}", stat.offset);
    writer.write(0, b"two").await.unwrap();
    // An abort takes it from its writer.
    served.client.clone().abort(wire::AbortRequest { r#ref: "ref".into() }).await.unwrap();
    assert_eq!(code(writer.write(3, b"x").await), Code::Aborted);
    let (_, stat) = served.begin("ref", 0).await.unwrap();
    assert_eq!(stat.offset, 0);
}

#[tokio::test]
async fn what_is_deleted_is_cache_until_it_is_asked_for_again() {
    let served = served().await;
    let (one, two) = (served.put(b"one").await, served.put(b"two").await);
    assert_eq!(served.list(&[]).await.unwrap().len(), 2);
    for _ in 0..2 {
        served.client.clone().delete(wire::DeleteContentRequest { digest: one.clone() }).await.unwrap();
    }
    let listed: Vec<String> = served.list(&[]).await.unwrap().into_iter().map(|info| info.digest).collect();
    assert_eq!(listed, [two]);
    assert!(served.disk.held(&one.parse().unwrap()).is_some(), "peers still get it");
    assert_eq!(served.info(&one).await.unwrap().size, 3);
    assert_eq!(served.list(&[&format!("digest=={one}")]).await.unwrap().len(), 1);
}

#[tokio::test]
async fn labels_change_whole_or_by_their_paths() {
    let served = served().await;
    let digest = served.put(b"one").await;
    let update = async |labels: &[(&str, &str)], paths: &[&str]| {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let info = Some(wire::Info { digest: digest.clone(), labels, ..Default::default() });
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        let request = wire::UpdateRequest { info, update_mask: Some(prost_types::FieldMask { paths }) };
        let updated = served.client.clone().update(request).await?.into_inner().info.unwrap();
        assert_eq!(updated, served.info(&digest).await.unwrap());
        let mut labels: Vec<String> = updated.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        labels.sort();
        Ok::<_, Status>(labels.join(" "))
    };
    assert_eq!(update(&[("a", "1"), ("b", "2")], &[]).await.unwrap(), "a=1 b=2");
    assert_eq!(update(&[("a", "3"), ("c", "4")], &["labels.a", "labels.b"]).await.unwrap(), "a=3");
    assert_eq!(update(&[("d.e/f", "5")], &["labels"]).await.unwrap(), "d.e/f=5");
    assert_eq!(code(update(&[], &["size"]).await), Code::InvalidArgument);
    assert_eq!(served.list(&["labels.\"d.e/f\"==5,size==3"]).await.unwrap().len(), 1);
    assert_eq!(served.list(&["labels.a", "labels.b"]).await.unwrap().len(), 0);
}

#[tokio::test]
async fn a_drain_lets_a_running_write_end_and_takes_no_new_one() {
    let served = served().await;
    let (mut writer, _) = served.begin("ref", 0).await.unwrap();
    writer.write(0, b"on").await.unwrap();
    let ended = tokio::spawn(served.end.drained(Duration::from_secs(20)));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!ended.is_finished());
    let all = wire::WriteContentRequest { offset: 2, data: b"e".to_vec(), ..Default::default() };
    assert_eq!(writer.say(Commit, all).await.unwrap().digest, name(b"one"));
    drop((writer, served.client));
    assert!(ended.await.unwrap());
}

#[tokio::test]
#[ignore = "a measurement: cargo test --workspace --lib -- --ignored --nocapture ten_thousand"]
async fn lists_ten_thousand_and_reads_in_small_parts() {
    let served = served().await;
    for number in 0..10_000u32 {
        served.put(&number.to_le_bytes()).await;
    }
    for _ in 0..3 {
        let started = Instant::now();
        let listed = served.list(&[]).await.unwrap().len();
        println!("{listed} blobs listed in {:?}", started.elapsed());
    }
    let big = served.put(&vec![9; 12 << 20]).await;
    let started = Instant::now();
    for part in 0..(12 << 20) / (32 << 10) {
        assert_eq!(served.read(&big, part * (32 << 10), 32 << 10).await.unwrap().len(), 32 << 10);
    }
    println!("32 KiB a call: {:.0} MiB/s", 12.0 / started.elapsed().as_secs_f64());
    let started = Instant::now();
    let many = futures::stream::iter(0..1000).map(|_| served.info(&big)).buffer_unordered(1).count().await;
    println!("{many} infos in {:?}", started.elapsed());
}
