//! Kills and power cuts, at every step that a store takes.

use std::collections::HashSet;

use proptest::prelude::*;
use shoal_proto::Digest;

use super::Machine;
use crate::store::suite::{BLOCK, Sample, eventually, set};
use crate::store::{Store, StoreError};

/// A life: opens, commits, resumes, makes durable, evicts, removes, discards. `sure` is what is held for certain at
/// each moment: what was acknowledged and not asked to go.
async fn life(machine: &Machine, samples: &[Sample; 5], sure: &mut HashSet<Digest>) -> Result<(), StoreError> {
    let [a, b, c, d, e] = samples;
    let disk = machine.try_open().await?;
    let store = &*disk;
    a.put(store).await?;
    sure.insert(a.digest);

    let partial = b.begin(store).await?;
    b.write(&*partial, 0..1).await?;
    partial.checkpoint(&b.notes_of(&set(b.layout, 0..1))).await?;
    b.write(&*partial, 1..3).await?;
    partial.checkpoint(&b.notes).await?;
    drop(partial);
    let partial = b.begin(store).await?;
    b.write(&*partial, 0..b.layout.blocks()).await?;
    partial.checkpoint(&b.notes).await?;
    partial.commit(&b.notes).await?;
    sure.insert(b.digest);
    drop(partial);

    // Makes `a` go.
    sure.remove(&a.digest);
    c.put(store).await?;
    sure.insert(c.digest);

    sure.remove(&c.digest);
    store.remove(&c.digest).await?;

    let partial = d.begin(store).await?;
    d.write(&*partial, 0..2).await?;
    partial.checkpoint(&d.notes).await?;
    partial.discard().await?;
    drop(partial);
    let partial = d.begin(store).await?;
    d.write(&*partial, 1..2).await?;
    partial.checkpoint(&d.notes).await?;
    drop(partial);

    let partial = e.begin(store).await?;
    e.write(&*partial, 0..1).await?;
    drop(partial);
    Ok(())
}

async fn survives_at_any_step(power: bool) {
    let samples = [3, 5, 4, 2, 1].map(|blocks| Sample::new(blocks as u8, blocks * BLOCK - 5));
    let mut steps = 0;
    loop {
        let mut machine = Machine::new(9 * BLOCK);
        machine.sync_every = 2 * BLOCK;
        machine.faults.kill_after(steps);
        let mut sure = HashSet::new();
        let lived = life(&machine, &samples, &mut sure).await;
        let killed = machine.faults.killed();
        assert_eq!(lived.is_err(), killed && lived.is_err(), "failed by itself: {lived:?}");
        match power {
            true => machine.cut_power(None).await,
            false => machine.kill(None).await,
        }
        // The next daemon is killed while it clears away, the one after it is not.
        machine.faults.kill_after(steps % 11);
        let _ = machine.try_open().await;
        machine.kill(None).await;

        let disk = machine.open().await;
        for sample in &samples {
            if sure.contains(&sample.digest) || disk.held(&sample.digest).is_some() {
                sample.assert_held(&*disk).await;
            }
        }
        machine.assert_tidy(&disk);
        for sample in &samples {
            if disk.held(&sample.digest).is_none() {
                sample.finish(&*disk).await;
                sample.assert_held(&*disk).await;
            }
        }
        machine.assert_tidy(&disk);
        if !killed {
            break;
        }
        steps += 1;
    }
    assert!(steps > 60, "only {steps} steps: the life became too short to mean something");
}

#[tokio::test]
async fn loses_no_held_blob_when_killed_at_any_step() {
    survives_at_any_step(false).await;
}

#[tokio::test]
async fn loses_no_held_blob_when_power_is_cut_at_any_step() {
    survives_at_any_step(true).await;
}

#[tokio::test]
async fn trusts_the_written_mark_after_a_kill() {
    let mut machine = Machine::new(0);
    let sample = Sample::new(1, 6 * BLOCK);
    let disk = machine.open().await;
    let partial = sample.begin(&*disk).await.unwrap();
    sample.write(&*partial, 0..4).await.unwrap();
    partial.checkpoint(&sample.notes).await.unwrap();
    sample.write(&*partial, 4..5).await.unwrap();
    drop(partial);
    machine.kill(Some(disk)).await;

    let disk = machine.open().await;
    assert_eq!(disk.partials(), [(sample.digest, 6 * BLOCK)]);
    let partial = sample.begin(&*disk).await.unwrap();
    assert_eq!(partial.resumed().unwrap().have, set(sample.layout, 0..4));
    drop(partial);
    sample.finish(&*disk).await;
}

#[tokio::test]
async fn trusts_only_the_durable_mark_after_a_reboot() {
    let mut machine = Machine::new(0);
    machine.sync_every = 3 * BLOCK;
    let sample = Sample::new(1, 6 * BLOCK);
    let disk = machine.open().await;
    let partial = sample.begin(&*disk).await.unwrap();
    sample.write(&*partial, 0..2).await.unwrap();
    partial.checkpoint(&sample.notes).await.unwrap();
    sample.write(&*partial, 2..3).await.unwrap();
    partial.checkpoint(&sample.notes).await.unwrap();
    sample.write(&*partial, 3..5).await.unwrap();
    partial.checkpoint(&sample.notes).await.unwrap();
    drop(partial);
    machine.cut_power(Some(disk)).await;

    let disk = machine.open().await;
    let partial = sample.begin(&*disk).await.unwrap();
    assert_eq!(partial.resumed().unwrap().have, set(sample.layout, 0..3));
    // What was durable stays so, through a flight that never got as far as a sync.
    partial.checkpoint(&sample.notes).await.unwrap();
    drop(partial);
    machine.cut_power(Some(disk)).await;
    let disk = machine.open().await;
    let partial = sample.begin(&*disk).await.unwrap();
    assert_eq!(partial.resumed().unwrap().have, set(sample.layout, 0..3));
    drop(partial);
    sample.finish(&*disk).await;
}

#[tokio::test]
async fn a_reboot_without_loss_is_not_trusted_either() {
    let mut machine = Machine::new(0);
    let sample = Sample::new(1, 2 * BLOCK);
    let disk = machine.open().await;
    let partial = sample.begin(&*disk).await.unwrap();
    sample.write(&*partial, 0..2).await.unwrap();
    partial.checkpoint(&sample.notes).await.unwrap();
    drop(partial);
    machine.kill(Some(disk)).await;
    machine.boot += 1;
    let disk = machine.open().await;
    let partial = sample.begin(&*disk).await.unwrap();
    let resumed = partial.resumed().unwrap();
    assert!(resumed.have.is_empty());
    assert_eq!(resumed.notes.list, sample.notes.list, "the list is worth keeping");
}

#[tokio::test]
async fn a_torn_record_does_not_take_the_durable_mark_along() {
    let mut machine = Machine::new(0);
    machine.sync_every = 2 * BLOCK;
    let sample = Sample::new(1, 6 * BLOCK);
    let disk = machine.open().await;
    let partial = sample.begin(&*disk).await.unwrap();
    sample.write(&*partial, 0..2).await.unwrap();
    partial.checkpoint(&sample.notes).await.unwrap();
    sample.write(&*partial, 2..3).await.unwrap();
    partial.checkpoint(&sample.notes).await.unwrap();
    drop(partial);
    machine.kill(Some(disk)).await;
    let recent = machine.path("partial").join(sample.digest.hex()).with_extension("recent");
    let whole = std::fs::read(&recent).unwrap();
    for torn in [&whole[..whole.len() - 1], &whole[..whole.len() / 2], &[]] {
        std::fs::write(&recent, torn).unwrap();
        let disk = machine.open().await;
        let partial = sample.begin(&*disk).await.unwrap();
        assert_eq!(partial.resumed().unwrap().have, set(sample.layout, 0..2));
        drop(partial);
        machine.kill(Some(disk)).await;
    }
}

#[derive(Debug, Clone)]
enum Act {
    Write(u32),
    Checkpoint,
    Leave,
    Kill,
    CutPower,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        6 => (0u32..8).prop_map(Act::Write),
        4 => Just(Act::Checkpoint),
        1 => Just(Act::Leave),
        1 => Just(Act::Kill),
        1 => Just(Act::CutPower),
    ];
    proptest::collection::vec(act, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_bitmap_never_claims_what_the_disk_has_not(acts in acts()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut machine = Machine::new(0);
            machine.sync_every = 2 * BLOCK;
            let sample = Sample::new(1, 8 * BLOCK - 3);
            let mut disk = machine.open().await;
            let mut partial = sample.begin(&*disk).await.unwrap();
            // What the last checkpoint must have kept, as long as the power stays.
            let (mut written, mut recorded) = (set(sample.layout, []), set(sample.layout, []));
            for act in acts {
                match act {
                    Act::Write(block) => {
                        partial.write(block, sample.block(block)).await.unwrap();
                        written.insert(block);
                        continue;
                    }
                    Act::Checkpoint => {
                        partial.checkpoint(&sample.notes).await.unwrap();
                        recorded = written.clone();
                        continue;
                    }
                    Act::Leave => drop(partial),
                    Act::Kill => {
                        drop(partial);
                        machine.kill(Some(disk)).await;
                        disk = machine.open().await;
                    }
                    Act::CutPower => {
                        drop(partial);
                        machine.cut_power(Some(disk)).await;
                        disk = machine.open().await;
                    }
                }
                partial = eventually(async || sample.begin(&*disk).await.ok()).await;
                let have = partial.resumed().map_or_else(|| set(sample.layout, []), |resumed| resumed.have.clone());
                if !matches!(act, Act::CutPower) {
                    assert_eq!(have, recorded);
                }
                for block in (0..8).filter(|block| have.contains(*block)) {
                    assert!(recorded.contains(block));
                    let start = sample.layout.block_range(block).start;
                    let bytes = partial.read_at(start, BLOCK as usize).await.unwrap();
                    assert!(bytes.starts_with(&sample.block(block)), "block {block}");
                }
                (written, recorded) = (have.clone(), have);
            }
            drop(partial);
            sample.finish(&*disk).await;
        });
    }
}
