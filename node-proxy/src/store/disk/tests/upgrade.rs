//! Directories that earlier versions wrote, opened by this one. Each is kept as text below `tests/data`; none is ever
//! changed, and a new format of the store adds one.

use std::os::unix::fs::FileExt as _;

use shoal_proto::BlockSet;

use super::Machine;
use crate::store::suite::{BLOCK, Sample, set};
use crate::store::{Disk, Store};

/// Written by the store of 0.1.0, which knew no index: see the head of the file.
const VERSION_1: &str = include_str!("../../../../tests/data/store-1.txt");

/// What is held in it.
fn held() -> [Sample; 3] {
    [
        Sample::of(b"shoal\n".repeat(50), "application/vnd.oci.image.manifest.v1+json"),
        Sample::of(Vec::new(), ""),
        Sample::of(vec![b'h'; 2 * BLOCK as usize + 10], "application/octet-stream"),
    ]
}

/// Of what the first block was synced, and the last one written since.
fn partial() -> Sample {
    let block = BLOCK as usize;
    Sample::of([vec![b'a'; block], vec![b'b'; block], vec![b'c'; 100]].concat(), "application/x-partial")
}

/// Puts the files in their places.
fn unpack(text: &str, machine: &Machine) {
    let mut file = None;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words[at].parse::<u64>().unwrap();
        match words[0] {
            "file" => {
                let path = machine.path(words[1]);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                let made = std::fs::File::create(path).unwrap();
                made.set_len(number(2)).unwrap();
                file = Some(made);
            }
            "hex" => {
                file.as_ref().unwrap().write_all_at(&hex::decode(words[2]).unwrap(), number(1)).unwrap();
            }
            "fill" => {
                let bytes = vec![u8::from_str_radix(words[3], 16).unwrap(); number(2) as usize];
                file.as_ref().unwrap().write_all_at(&bytes, number(1)).unwrap();
            }
            _ => panic!("{line}"),
        }
    }
}

async fn resumes(disk: &Disk) -> BlockSet {
    let partial = self::partial().begin(disk).await.unwrap();
    let resumed = partial.resumed().unwrap();
    assert_eq!(resumed.notes.list, self::partial().notes.list);
    assert_eq!(&*resumed.notes.media_type, "application/x-partial");
    resumed.have.clone()
}

async fn assert_all_held(machine: &Machine, disk: &Disk) {
    for sample in held() {
        sample.assert_held(disk).await;
    }
    assert_eq!(disk.usage().held_blobs, 3);
    machine.assert_tidy(disk);
}

#[tokio::test]
async fn a_directory_of_version_1_is_opened_with_all_that_it_has() {
    let mut machine = Machine::new(0);
    unpack(VERSION_1, &machine);
    let disk = machine.open().await;
    assert_all_held(&machine, &disk).await;
    assert_eq!(disk.partials(), [(partial().digest, 2 * BLOCK + 100)]);
    assert_eq!(resumes(&disk).await, set(partial().layout, [0, 2]), "while the machine has not stopped");
    machine.kill(Some(disk)).await;

    machine.boot += 1;
    let disk = machine.open().await;
    assert_eq!(resumes(&disk).await, set(partial().layout, [0]), "what was synced");
    partial().finish(&*disk).await;
    partial().assert_held(&*disk).await;
    machine.kill(Some(disk)).await;
    let disk = machine.open().await;
    partial().assert_held(&*disk).await;
    disk.remove(&partial().digest).await.unwrap();
    assert_all_held(&machine, &disk).await;
}

/// What an older one must find is what it knew: the same version, the same files, and nothing in the directories of
/// blobs that it would not know. It leaves the index alone, which lies beside them.
#[tokio::test]
async fn the_directory_of_this_version_is_one_of_version_1() {
    let (written, machine) = (Machine::new(0), Machine::new(0));
    let disk = written.open().await;
    for sample in held() {
        sample.put(&*disk).await.unwrap();
    }
    unpack(VERSION_1, &machine);
    assert_eq!(std::fs::read(machine.path("version")).unwrap(), std::fs::read(written.path("version")).unwrap());
    for path in machine.files("held") {
        let below = path.strip_prefix(machine.path("")).unwrap();
        let same = written.path(below.to_str().unwrap());
        assert!(std::fs::read(&path).unwrap() == std::fs::read(&same).unwrap(), "{}", same.display());
    }
    assert_eq!(written.files("held").len(), machine.files("held").len());
}
