//! The index spares a start the reading of sidecars, and can do nothing else, whatever it says.

use std::collections::BTreeMap;

use proptest::prelude::*;
use shoal_proto::Digest;

use super::Machine;
use crate::store::suite::{BLOCK, Sample};
use crate::store::{Disk, Info, Store};

fn sidecars_read(disk: &Disk) -> u64 {
    disk.inner.metrics.sidecars_read.get()
}

fn held(disk: &Disk) -> BTreeMap<Digest, Info> {
    disk.list().into_iter().collect()
}

#[tokio::test]
async fn a_start_reads_no_sidecar_of_what_was_committed_or_found_before() {
    let mut machine = Machine::new(0);
    let disk = machine.open().await;
    let samples: Vec<Sample> = (0..3).map(|seed| Sample::new(seed, BLOCK + u64::from(seed))).collect();
    for sample in &samples {
        sample.put(&*disk).await.unwrap();
    }
    let before = held(&disk);
    machine.kill(Some(disk)).await;
    let disk = machine.open().await;
    assert_eq!((sidecars_read(&disk), held(&disk)), (0, before.clone()));
    for sample in &samples {
        sample.assert_held(&*disk).await;
    }
    drop(disk);

    // As an older version leaves it.
    machine.wait_until_unlocked().await;
    std::fs::remove_file(machine.path("index")).unwrap();
    let disk = machine.open().await;
    assert_eq!((sidecars_read(&disk), held(&disk)), (3, before.clone()));
    machine.kill(Some(disk)).await;
    let disk = machine.open().await;
    assert_eq!((sidecars_read(&disk), held(&disk)), (0, before));
}

#[tokio::test]
async fn after_a_power_cut_the_sidecars_are_read() {
    let mut machine = Machine::new(0);
    let disk = machine.open().await;
    let sample = Sample::new(1, BLOCK);
    sample.put(&*disk).await.unwrap();
    machine.cut_power(Some(disk)).await;
    let disk = machine.open().await;
    assert_eq!(sidecars_read(&disk), 1);
    sample.assert_held(&*disk).await;
}

#[tokio::test]
async fn what_the_index_remembers_and_the_disk_has_not_is_not_held() {
    let mut machine = Machine::new(0);
    let disk = machine.open().await;
    let [no_bytes, no_sidecar, neither, evicted, stays] = [0, 1, 2, 3, 4].map(|seed| Sample::new(seed, BLOCK));
    for sample in [&no_bytes, &no_sidecar, &neither, &evicted, &stays] {
        sample.put(&*disk).await.unwrap();
    }
    disk.remove(&evicted.digest).await.unwrap();
    let places = disk.inner.places.clone();
    machine.kill(Some(disk)).await;
    for gone in [
        places.held(&no_bytes.digest),
        places.held_list(&no_sidecar.digest),
        places.held(&neither.digest),
        places.held_list(&neither.digest),
    ] {
        std::fs::remove_file(gone).unwrap();
    }
    let disk = machine.open().await;
    assert_eq!(held(&disk).into_keys().collect::<Vec<_>>(), [stays.digest]);
    machine.assert_tidy(&disk);
}

#[tokio::test]
async fn a_sidecar_that_was_changed_in_place_is_read() {
    let mut machine = Machine::new(0);
    let disk = machine.open().await;
    let sample = Sample::new(1, BLOCK);
    sample.put(&*disk).await.unwrap();
    let list = disk.inner.places.held_list(&sample.digest);
    let other = {
        let mut notes = sample.notes.clone();
        notes.media_type = "application/y".into();
        crate::store::sidecar::encode_held(&notes).unwrap()
    };
    machine.kill(Some(disk)).await;
    let modified = std::fs::metadata(&list).unwrap().modified().unwrap();
    std::fs::write(&list, other).unwrap();
    // Whoever restores a backup sets this back.
    std::fs::File::options().write(true).open(&list).unwrap().set_modified(modified).unwrap();
    let disk = machine.open().await;
    assert_eq!(sidecars_read(&disk), 1);
    assert_eq!(&*disk.held(&sample.digest).unwrap().media_type, "application/y");
}

/// What is done to an index between two starts.
#[derive(Debug, Clone)]
enum Harm {
    Nothing,
    Gone,
    Old,
    OfAnotherStore,
    Cut(usize),
    Flip(usize),
    Zeros(usize),
    Garbage(Vec<u8>),
}

fn harm() -> impl Strategy<Value = Harm> {
    prop_oneof![
        Just(Harm::Nothing),
        Just(Harm::Gone),
        Just(Harm::Old),
        Just(Harm::OfAnotherStore),
        (0usize..1000).prop_map(Harm::Cut),
        (0usize..1000).prop_map(Harm::Flip),
        (0usize..1000).prop_map(Harm::Zeros),
        proptest::collection::vec(any::<u8>(), 0..200).prop_map(Harm::Garbage),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn whatever_becomes_of_the_index_the_same_is_held(
        harms in proptest::collection::vec((harm(), 0u8..6, 0u8..6), 1..6),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let samples: Vec<Sample> = (0..6).map(|seed| Sample::new(seed, 40 + u64::from(seed))).collect();
            let mut other = Machine::new(0).model_only();
            let disk = other.open().await;
            for sample in &samples {
                sample.put(&*disk).await.unwrap();
            }
            other.kill(Some(disk)).await;

            let mut machine = Machine::new(0).model_only();
            let mut want: BTreeMap<Digest, Info> = BTreeMap::new();
            let mut old = Vec::new();
            for (harm, put, remove) in harms {
                let disk = machine.open().await;
                assert_eq!(held(&disk), want);
                samples[usize::from(put)].put(&*disk).await.unwrap();
                disk.remove(&samples[usize::from(remove)].digest).await.unwrap();
                want = held(&disk);
                machine.kill(Some(disk)).await;
                let path = machine.path("index");
                let bytes = std::fs::read(&path).unwrap();
                let harmed = match harm {
                    Harm::Nothing => Some(bytes.clone()),
                    Harm::Gone => None,
                    Harm::Old => Some(old.clone()),
                    Harm::OfAnotherStore => Some(std::fs::read(other.path("index")).unwrap()),
                    Harm::Cut(at) => Some(bytes[..at % bytes.len()].to_vec()),
                    Harm::Flip(at) => {
                        let mut flipped = bytes.clone();
                        flipped[at % bytes.len()] ^= 1;
                        Some(flipped)
                    }
                    Harm::Zeros(at) => Some([&bytes[..at % bytes.len()], &[0; 500]].concat()),
                    Harm::Garbage(garbage) => Some([&bytes[..], &garbage].concat()),
                };
                match harmed {
                    Some(harmed) => std::fs::write(&path, harmed).unwrap(),
                    None => std::fs::remove_file(&path).unwrap(),
                }
                old = bytes;
            }
            let disk = machine.open().await;
            assert_eq!(held(&disk), want);
            for sample in samples.iter().filter(|sample| want.contains_key(&sample.digest)) {
                sample.assert_held(&*disk).await;
            }
            machine.assert_tidy(&disk);
        });
    }
}
