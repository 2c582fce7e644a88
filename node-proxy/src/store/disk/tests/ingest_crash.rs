//! Kills and power cuts at every step of what containerd writes.

use std::collections::HashSet;

use shoal_proto::Digest;

use super::Machine;
use super::ingests::{append, commit, put};
use crate::store::suite::{BLOCK, Sample};
use crate::store::{Commit, Content, IngestError, LabelUpdate, Store};

async fn life(machine: &Machine, samples: &[Sample; 3], sure: &mut HashSet<Digest>) -> Result<(), IngestError> {
    let [a, b, c] = samples;
    let disk = machine.try_open().await?;
    put(&disk, "a", a).await?;
    sure.insert(a.digest);
    disk.label(&a.digest, LabelUpdate::All([("k".into(), "v".into())].into())).await?;

    let ingest = disk.ingest("b", 0).await?;
    append(&ingest, b, BLOCK).await?;
    ingest.truncate().await?;
    append(&ingest, b, 2 * BLOCK).await?;
    drop(ingest);
    let ingest = disk.ingest("b", 0).await?;
    append(&ingest, b, b.layout.size()).await?;
    ingest.commit(Commit { labels: [("k".into(), "v".into())].into(), ..commit() }).await?;
    sure.insert(b.digest);

    let ingest = disk.ingest("c", 0).await?;
    append(&ingest, c, BLOCK).await?;
    drop(ingest);
    disk.abort("c").await?;
    let ingest = disk.ingest("c", 0).await?;
    append(&ingest, c, BLOCK).await?;
    Ok(())
}

async fn survives_at_any_step(power: bool) {
    let samples = [1, 3, 2].map(|blocks| Sample::new(blocks as u8, blocks * BLOCK - 5));
    let mut steps = 0;
    loop {
        let mut machine = Machine { claims: true, ..Machine::new(0) }.model_only();
        machine.faults.kill_after(steps);
        let mut sure = HashSet::new();
        let lived = life(&machine, &samples, &mut sure).await;
        let killed = machine.faults.killed();
        assert!(lived.is_ok() || killed, "failed by itself: {lived:?}");
        match power {
            true => machine.cut_power(None).await,
            false => machine.kill(None).await,
        }
        machine.faults.kill_after(steps % 7);
        let _ = machine.try_open().await;
        machine.kill(None).await;

        let disk = machine.open().await;
        machine.assert_tidy(&disk);
        for (sample, reference) in samples.iter().zip(["a", "b", "c"]) {
            if sure.contains(&sample.digest) || disk.held(&sample.digest).is_some() {
                sample.assert_held(&*disk).await;
                continue;
            }
            // What is left of it is the begin of it: a writer goes on there and ends with the right digest.
            let ingest = disk.ingest(reference, 0).await.unwrap();
            append(&ingest, sample, sample.layout.size()).await.unwrap();
            ingest.commit(Commit { expected: Some(sample.digest), ..commit() }).await.unwrap();
            sample.assert_held(&*disk).await;
        }
        machine.assert_tidy(&disk);
        if !killed {
            break;
        }
        steps += 1;
    }
    assert!(steps > 50, "only {steps} steps: the life became too short to mean something");
}

#[tokio::test]
async fn i2_a_kill_at_any_step_of_an_ingest_loses_no_blob_and_leaves_no_wrong_one() {
    survives_at_any_step(false).await;
}

#[tokio::test]
async fn i2_a_power_cut_at_any_step_of_an_ingest_loses_no_blob_and_leaves_no_wrong_one() {
    survives_at_any_step(true).await;
}
