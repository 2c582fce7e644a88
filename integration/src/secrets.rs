//! Looks for secrets where they have no business: in files, in pages, and in the memory of processes.
//!
//! A secret has forms: as text, in base64 behind a name, as the bytes that a text stands for. What is found says where, in which form,
//! and what is around it. All of them are the lab's own, so that nothing is given away by printing.
use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
};

use anyhow::{Context, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use memchr::memmem::Finder;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::rights::User;

/// Bytes of memory that are looked at at once.
const CHUNK: usize = 8 << 20;
/// What is shown before and after a find.
const AROUND: usize = 40;

/// A secret.
#[derive(Debug, Clone)]
pub struct Secret {
    /// What it is: "the password of ann".
    pub name: String,
    forms: Vec<(&'static str, Vec<u8>)>,
}

impl Secret {
    /// A text.
    pub fn text(name: &str, text: &str) -> Self {
        let forms = vec![("as text", text.as_bytes().to_vec()), ("in base64", BASE64.encode(text).into_bytes())];
        Self { name: name.to_owned(), forms }
    }

    /// A text in hex digits, and the bytes that they stand for.
    ///
    /// # Errors
    /// When it is not in hex.
    pub fn hex(name: &str, text: &str) -> Result<Self> {
        let mut secret = Self::text(name, text);
        secret.forms.push(("as bytes", hex::decode(text).with_context(|| format!("{name} is not in hex"))?));
        Ok(secret)
    }

    /// The password of a user, alone and as it goes in a header.
    pub fn password(user: &User) -> Self {
        let mut secret = Self::text(&format!("the password of {}", user.name), &user.password);
        secret.forms.push(("as Basic", BASE64.encode(user.creds()).into_bytes()));
        secret
    }

    /// A token with a signature: nobody can use it without.
    ///
    /// # Errors
    /// When it has none.
    pub fn token(name: &str, token: &str) -> Result<Self> {
        let signature = token.rsplit('.').next().filter(|signature| signature.len() >= 40);
        let signature = signature.with_context(|| format!("{name} has no signature"))?;
        Ok(Self { name: name.to_owned(), forms: vec![("its signature", signature.as_bytes()[..40].to_vec())] })
    }

    /// A private key on P-256 (PKCS #8, DER): its number as bytes and in hex, and that part of its base64 that stands in one line of a
    /// PEM file.
    ///
    /// # Errors
    /// When it is another kind of key.
    pub fn key(name: &str, der: &[u8]) -> Result<Self> {
        // RFC 5915: an octet string of 32 bytes behind the version, at a fixed place of this kind of key.
        const NUMBER: std::ops::Range<usize> = 36..68;
        let number = der.get(NUMBER).with_context(|| format!("{name} is too short"))?;
        ensure!(der.get(NUMBER.start - 2..NUMBER.start) == Some(&[4, 32]), "{name} is no key on P-256");
        let text = BASE64.encode(der);
        // Lines have 64 letters; the second begins within the number, which ends at letter 90.
        let line = text.get(64..90).with_context(|| format!("{name} is too short"))?;
        let forms = vec![
            ("as bytes", number.to_vec()),
            ("in hex", hex::encode(number).into_bytes()),
            ("in base64", line.as_bytes().to_vec()),
        ];
        Ok(Self { name: name.to_owned(), forms })
    }
}

/// A secret, found.
#[derive(Debug, Clone)]
pub struct Found {
    /// Which.
    pub secret: String,
    /// In which form.
    pub form: &'static str,
    /// Where: a file, or whose memory and what of it.
    pub place: String,
    /// Byte in the file, or address.
    pub at: u64,
    /// What stands before and after it.
    pub around: String,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}) in {} at {:#x}: {}", self.secret, self.form, self.place, self.at, self.around)
    }
}

/// Looks for secrets.
pub struct Search {
    secrets: Vec<(String, Vec<(&'static str, Finder<'static>)>)>,
    longest: usize,
}

impl Search {
    /// For these.
    pub fn new(secrets: &[Secret]) -> Self {
        let finders = |secret: &Secret| {
            secret.forms.iter().map(|(form, bytes)| (*form, Finder::new(bytes).into_owned())).collect::<Vec<_>>()
        };
        let longest = secrets.iter().flat_map(|secret| &secret.forms).map(|(_, bytes)| bytes.len()).max().unwrap_or(0);
        Self { secrets: secrets.iter().map(|secret| (secret.name.clone(), finders(secret))).collect(), longest }
    }

    fn bytes(&self, bytes: &[u8], place: &str, from: u64, found: &mut Vec<Found>) {
        for (secret, forms) in &self.secrets {
            for (form, finder) in forms {
                let len = finder.needle().len();
                found.extend(finder.find_iter(bytes).map(|at| Found {
                    secret: secret.clone(),
                    form,
                    place: place.to_owned(),
                    at: from + at as u64,
                    around: around(bytes, at, len),
                }));
            }
        }
    }

    /// Every file below a directory; links are not followed. How many were looked at, and what was found, with paths as they are below
    /// the directory.
    ///
    /// # Errors
    /// When one can't be read.
    pub fn below(&self, dir: &Path) -> Result<(usize, Vec<Found>)> {
        let (mut files, mut found, mut dirs) = (0, Vec::new(), vec![dir.to_owned()]);
        while let Some(at) = dirs.pop() {
            for entry in fs::read_dir(&at).with_context(|| format!("read {}", at.display()))? {
                let entry = entry?;
                let (path, kind) = (entry.path(), entry.file_type()?);
                let name = path.strip_prefix(dir).unwrap_or(&path).display().to_string();
                // A name may give something away too.
                self.bytes(name.as_bytes(), &format!("the name of {name}"), 0, &mut found);
                if kind.is_dir() {
                    dirs.push(path);
                } else if kind.is_file() {
                    let bytes = match fs::read(&path) {
                        Ok(bytes) => bytes,
                        // A daemon that runs on removes what it made.
                        Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
                    };
                    files += 1;
                    self.bytes(&bytes, &name, 0, &mut found);
                }
            }
        }
        Ok((files, found))
    }

    /// Everything that a process can read of its own memory, while it is stopped. How many bytes that were, and what was found.
    ///
    /// # Errors
    /// When it is gone, or the caller may not look.
    pub fn memory(&self, pid: u32, whose: &str) -> Result<(u64, Vec<Found>)> {
        let process = Pid::from_raw(i32::try_from(pid)?);
        kill(process, Signal::SIGSTOP).with_context(|| format!("stop {whose}"))?;
        let looked = self.stopped(pid, whose);
        kill(process, Signal::SIGCONT).with_context(|| format!("let {whose} go on"))?;
        looked
    }

    fn stopped(&self, pid: u32, whose: &str) -> Result<(u64, Vec<Found>)> {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).with_context(|| format!("read maps of {whose}"))?;
        let mem = File::open(format!("/proc/{pid}/mem")).with_context(|| format!("open the memory of {whose}"))?;
        let (mut looked, mut found) = (0, Vec::new());
        let mut buffer = vec![0; CHUNK + self.longest];
        for map in maps.lines().filter_map(Map::parse) {
            let place = format!("the memory of {whose}, {}", map.what);
            let mut at = map.start;
            while at < map.end {
                let len = usize::try_from((map.end - at).min(buffer.len() as u64))?;
                // What was given back meanwhile, or was never there, can't be read.
                let Ok(read) = mem.read_at(&mut buffer[..len], at) else { break };
                if read == 0 {
                    break;
                }
                self.bytes(&buffer[..read], &place, at, &mut found);
                looked += read.min(CHUNK) as u64;
                // What lies over the edge of two chunks is found in the second, and twice where it lies within.
                at += read.min(CHUNK) as u64;
            }
        }
        found.sort_by_key(|one| (one.at, one.form));
        found.dedup_by_key(|one| (one.at, one.form));
        Ok((looked, found))
    }
}

/// A readable part of a process's memory.
struct Map {
    start: u64,
    end: u64,
    what: String,
}

impl Map {
    /// Reads a line of `/proc/<pid>/maps`.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let readable = words.next()?.starts_with('r');
        let what = words.nth(3).unwrap_or("anonymous").to_owned();
        let kernels = matches!(what.as_str(), "[vvar]" | "[vvar_vclock]" | "[vsyscall]" | "[vdso]");
        let number = |text| u64::from_str_radix(text, 16).ok();
        (readable && !kernels).then_some(Self { start: number(start)?, end: number(end)?, what })
    }
}

fn around(bytes: &[u8], at: usize, len: usize) -> String {
    let (from, to) = (at.saturating_sub(AROUND), (at + len + AROUND).min(bytes.len()));
    let mut text = String::new();
    for byte in &bytes[from..to] {
        match byte {
            b' '..=b'~' => text.push(char::from(*byte)),
            0 => text.push('.'),
            other => {
                let _ = write!(text, "\\{other:02x}");
            }
        }
    }
    text
}

/// Finds by what and where, and how often: what people read.
pub fn summary(found: &[Found]) -> String {
    let mut by_place: BTreeMap<(&str, &str, &str), Vec<&Found>> = BTreeMap::new();
    for one in found {
        by_place.entry((&one.secret, one.form, &one.place)).or_default().push(one);
    }
    let mut text = String::new();
    for ((secret, form, place), all) in by_place {
        let _ = writeln!(text, "{secret} ({form}), {} times in {place}; the first at {:#x}:", all.len(), all[0].at);
        let _ = writeln!(text, "    {}", all[0].around);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_found_in_each_form_in_files_and_in_names() {
        let dir = tempfile::tempdir().unwrap();
        let ann = User::new("ann");
        fs::create_dir(dir.path().join("logs")).unwrap();
        fs::write(dir.path().join("logs/a"), format!("GET / authorization: {} rest", ann.basic())).unwrap();
        fs::write(dir.path().join("logs").join(&ann.password), "nothing").unwrap();
        let (files, found) = Search::new(&[Secret::password(&ann)]).below(dir.path()).unwrap();
        assert_eq!(files, 2);
        let mut forms: Vec<(&str, bool)> = found.iter().map(|one| (one.form, one.place == "logs/a")).collect();
        forms.sort_unstable();
        assert_eq!(forms, [("as Basic", true), ("as text", false)]);
        assert!(found.iter().any(|one| one.around.contains("authorization: Basic")), "{found:?}");
    }

    #[test]
    fn a_key_is_found_in_pem_and_in_der() {
        let pair = rcgen::KeyPair::generate().unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("pem"), pair.serialize_pem()).unwrap();
        fs::write(dir.path().join("der"), pair.serialize_der()).unwrap();
        fs::write(dir.path().join("json"), BASE64.encode(pair.serialize_der())).unwrap();
        let key = Secret::key("a key", &pair.serialize_der()).unwrap();
        let (_, found) = Search::new(&[key]).below(dir.path()).unwrap();
        let mut places: Vec<&str> = found.iter().map(|one| one.place.as_str()).collect();
        places.sort_unstable();
        assert_eq!(places, ["der", "json", "pem"]);
    }

    #[test]
    fn what_a_process_has_in_memory_is_found_there() {
        let secret = hex::encode(rand::random::<[u8; 16]>());
        let child = std::process::Command::new("sleep").arg("60").env("LAB_SECRET", &secret).spawn();
        let mut child = child.unwrap();
        let search = Search::new(&[Secret::hex("a secret", &secret).unwrap()]);
        // Until it is itself and not yet the one who starts it.
        let found = (0..100).find_map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(20));
            let (_, found) = search.memory(child.id(), "a child").ok()?;
            found.iter().any(|one| one.place.contains("[stack]")).then_some(found)
        });
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.is_some(), "its environment is on its stack");
    }
}
