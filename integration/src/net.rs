//! The lab's network: a namespace for each machine, and one more for the switch that joins them, so that the root namespace
//! keeps nothing but names.
//!
//! All machines share one layer 2 segment, 10.77.0.0/16: nothing but the daemons' own rules keeps clusters apart, and the
//! switch counts in the kernel what passes between every two nodes.
use std::{
    fmt::Write as _,
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};

use crate::{
    process::{command, run, run_with_input},
    run::{PREFIX, RunId},
};

mod closed;
mod counters;
mod parted;
mod probe;

pub use closed::ClosedPort;
pub use counters::PairCount;
pub use parted::{CutLink, Parted};
pub use probe::measure_rate;

/// A machine to be: its name, its address and the rate of its link.
#[derive(Debug, Clone)]
pub struct Place {
    /// Short name, also that of its port at the switch (at most 15 bytes).
    pub name: String,
    /// Address in 10.77.0.0/16.
    pub address: Ipv4Addr,
    /// Bits per second in each direction; `None` leaves the link as fast as the machine is.
    pub rate: Option<u64>,
    /// Whether the switch counts what this machine sends to, and gets from, every other counted one.
    pub counted: bool,
}

/// A namespace that exists.
#[derive(Debug, Clone)]
pub struct Netns {
    /// Short name within the run.
    pub name: String,
    /// Name for `ip netns`.
    pub full_name: String,
    /// Its address.
    pub address: Ipv4Addr,
}

/// What a link is set to, as read back from the kernel.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct LinkRate {
    /// Short name of the machine.
    pub place: String,
    /// Bits per second towards the machine; `None`: not shaped.
    pub down_bits: Option<u64>,
    /// Bits per second from the machine; `None`: not shaped.
    pub up_bits: Option<u64>,
}

/// The network of a run; dropped, it is taken down.
#[derive(Debug)]
pub struct Net {
    run: RunId,
    switch: String,
    places: Vec<Place>,
}

impl Net {
    /// Makes namespaces, links, shaping, counters and name resolution: every machine knows `hosts`.
    ///
    /// # Errors
    /// When a step fails; what was made so far is taken down.
    pub fn build(run_id: &RunId, places: Vec<Place>, hosts: &[(IpAddr, String)]) -> Result<Self> {
        let net = Self { run: run_id.clone(), switch: full_name(run_id, "switch"), places };
        net.add_namespace(&net.switch)?;
        net.batch(Some(&net.switch), "link add br0 type bridge forward_delay 0\nlink set br0 up\nlink set lo up\n")?;
        let mut hosts_file = String::from("127.0.0.1 localhost\n::1 localhost\n");
        for (address, name) in hosts {
            let _ = writeln!(hosts_file, "{address} {name}");
        }
        for place in &net.places {
            net.add_place(place, &hosts_file).with_context(|| format!("build the network of {}", place.name))?;
        }
        counters::install(&net.switch, &net.counted())?;
        Ok(net)
    }

    fn add_namespace(&self, name: &str) -> Result<()> {
        run(&mut command("ip", ["netns", "add", name])).map(drop).with_context(|| {
            format!(
                "make the network namespace {name} (the lab needs root: run it with sudo, or in a privileged container)"
            )
        })
    }

    fn add_place(&self, place: &Place, hosts_file: &str) -> Result<()> {
        let ns = full_name(&self.run, &place.name);
        self.add_namespace(&ns)?;
        let etc = etc_dir(&ns);
        fs::create_dir_all(&etc).with_context(|| format!("create {}", etc.display()))?;
        fs::write(etc.join("hosts"), hosts_file)?;
        // No name server: a name that is not in `hosts` fails at once instead of going out.
        fs::write(etc.join("resolv.conf"), "# the lab has no name server\n")?;
        self.batch(
            None,
            &format!("link add eth0 netns {ns} type veth peer name {} netns {}\n", place.name, self.switch),
        )?;
        self.batch(Some(&self.switch), &format!("link set {0} master br0\nlink set {0} up\n", place.name))?;
        settle(&ns)?;
        self.batch(
            Some(&ns),
            &format!("link set lo up\naddress add {}/16 dev eth0\nlink set eth0 up\n", place.address),
        )?;
        if let Some(rate) = place.rate {
            shape(&ns, "eth0", rate)?;
            shape(&self.switch, &place.name, rate)?;
        }
        Ok(())
    }

    fn batch(&self, ns: Option<&str>, lines: &str) -> Result<()> {
        let mut ip = command("ip", [""; 0]);
        if let Some(ns) = ns {
            ip.args(["-n", ns]);
        }
        run_with_input(ip.args(["-batch", "-"]), lines).map(drop)
    }

    fn counted(&self) -> Vec<(&str, Ipv4Addr)> {
        self.places.iter().filter(|place| place.counted).map(|place| (place.name.as_str(), place.address)).collect()
    }

    /// The namespace of a machine.
    ///
    /// # Errors
    /// When no such machine was asked for.
    pub fn namespace(&self, name: &str) -> Result<Netns> {
        let place = self.places.iter().find(|place| place.name == name).ok_or_else(|| anyhow!("no machine {name}"))?;
        Ok(Netns { name: name.to_owned(), full_name: full_name(&self.run, name), address: place.address })
    }

    /// Packets and bytes that each counted machine sent to each other one, since the start.
    ///
    /// # Errors
    /// When the kernel's counters can't be read.
    pub fn pair_counts(&self) -> Result<Vec<PairCount>> {
        counters::read(&self.switch, &self.counted())
    }

    /// Shapes the link of a machine to another rate, in bits per second.
    ///
    /// # Errors
    /// When there is no such machine, or `tc` fails.
    pub fn reshape(&self, name: &str, rate: u64) -> Result<()> {
        let ns = self.namespace(name)?.full_name;
        shape_anew(&ns, "eth0", rate, "replace")?;
        shape_anew(&self.switch, name, rate, "replace")
    }

    /// What every link is shaped to, read back from the kernel.
    ///
    /// # Errors
    /// When `tc` fails.
    pub fn link_rates(&self) -> Result<Vec<LinkRate>> {
        let rate_of = |ns: &str, device: &str| -> Result<Option<u64>> {
            let text = run(&mut command("tc", ["-n", ns, "-j", "qdisc", "show", "dev", device]))?;
            let shown: serde_json::Value = serde_json::from_str(&text).context("parse tc's answer")?;
            let bytes = shown
                .as_array()
                .and_then(|list| list.iter().find(|qdisc| qdisc["kind"] == "tbf"))
                .and_then(|qdisc| qdisc["options"]["rate"].as_u64());
            Ok(bytes.map(|bytes| bytes * 8))
        };
        self.places
            .iter()
            .map(|place| {
                Ok(LinkRate {
                    place: place.name.clone(),
                    down_bits: rate_of(&self.switch, &place.name)?,
                    up_bits: rate_of(&full_name(&self.run, &place.name), "eth0")?,
                })
            })
            .collect()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let names = self.places.iter().map(|place| full_name(&self.run, &place.name)).chain([self.switch.clone()]);
        for name in names {
            if let Err(error) = remove_namespace(&name) {
                tracing::warn!(namespace = name, error = %format!("{error:#}"), "take down a namespace");
            }
        }
    }
}

/// Sets what a namespace must not take from the machine: congestion control that a shaped link suits (not bbr, the default of some
/// kernels), and no IPv6, whose neighbour discovery speaks to everyone.
fn settle(ns: &str) -> Result<()> {
    let set = |setting: &str| run(&mut command("ip", ["netns", "exec", ns, "sysctl", "-qw", setting]));
    // Some kernels let only the initial namespace choose cubic; reno backs off at losses too.
    set("net.ipv4.tcp_congestion_control=cubic").or_else(|_| set("net.ipv4.tcp_congestion_control=reno"))?;
    // A kernel without IPv6 has no such switch, and needs none.
    let _ = set("net.ipv6.conf.all.disable_ipv6=1");
    Ok(())
}

/// A token bucket for one direction of a link: 5 ms deep, so that the kernel's timer fills it in time, and never less than
/// the biggest segment of 64 KiB; with a queue of 50 ms.
fn shape(ns: &str, device: &str, bits: u64) -> Result<()> {
    shape_anew(ns, device, bits, "add")
}

/// `how`: `add`, or `replace` what is there.
fn shape_anew(ns: &str, device: &str, bits: u64, how: &str) -> Result<()> {
    let burst = (bits / 8 / 200).clamp(64 << 10, 4 << 20);
    run(&mut command(
        "tc",
        ["-n", ns, "qdisc", how, "dev", device, "root", "tbf", "rate", &format!("{bits}bit")]
            .into_iter()
            .map(String::from)
            .chain(["burst".into(), burst.to_string(), "latency".into(), "50ms".into()]),
    ))
    .map(drop)
    .context("shape a link")
}

fn full_name(run: &RunId, name: &str) -> String {
    format!("{PREFIX}{run}-{name}")
}

/// What `ip netns exec` lays over `/etc` inside the namespace.
fn etc_dir(full_name: &str) -> PathBuf {
    Path::new("/etc/netns").join(full_name)
}

/// Ends what still runs in a namespace of the lab's and removes it.
///
/// # Errors
/// When the namespace can't be removed.
pub(crate) fn remove_namespace(full_name: &str) -> Result<()> {
    assert!(full_name.starts_with(PREFIX), "only namespaces of the lab's are removed");
    let exists = Path::new("/run/netns").join(full_name).exists();
    if exists {
        let pids = run(&mut command("ip", ["netns", "pids", full_name])).unwrap_or_default();
        for pid in pids.lines().filter_map(|line| line.trim().parse::<i32>().ok()) {
            // A thread of our own that stands in the namespace ends by itself.
            if pid.unsigned_abs() != std::process::id() {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            }
        }
        run(&mut command("ip", ["netns", "delete", full_name]))?;
    }
    let etc = etc_dir(full_name);
    if etc.exists() {
        fs::remove_dir_all(&etc).with_context(|| format!("remove {}", etc.display()))?;
    }
    // The parent was ours to make if nobody else is in it.
    let _ = fs::remove_dir("/etc/netns");
    Ok(())
}

impl Netns {
    /// A command that runs inside, with a clean environment: neither a proxy nor a setting of the caller's reaches it.
    pub fn command(&self, program: &Path) -> Command {
        let mut ip = command("ip", ["netns", "exec", &self.full_name]);
        ip.arg(program);
        ip.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        ip
    }

    /// Runs `work` on a thread of its own that stands inside; sockets made there stay inside.
    pub(crate) fn within<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let path = Path::new("/run/netns").join(&self.full_name);
        let name = self.name.clone();
        thread::spawn(move || -> Result<T> {
            let ns = File::open(&path).with_context(|| format!("open {}", path.display()))?;
            setns(ns, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter the namespace of {name}"))?;
            Ok(work()?)
        })
        .join()
        .map_err(|_| anyhow!("a thread in the namespace of {} panicked", self.name))?
    }

    /// A listener inside, at the namespace's address; port 0 picks one.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn bind(&self, port: u16) -> Result<tokio::net::TcpListener> {
        self.bind_at(SocketAddrV4::new(self.address, port).into())
    }

    /// A listener inside, at any address there: loopback too.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn bind_at(&self, address: SocketAddr) -> Result<tokio::net::TcpListener> {
        let listener = self.within(move || {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })?;
        tokio::net::TcpListener::from_std(listener).context("hand a listener to tokio")
    }

    /// A connection from inside, in at most two seconds.
    ///
    /// # Errors
    /// When it can't be made.
    pub async fn connect(&self, to: SocketAddr) -> Result<tokio::net::TcpStream> {
        let ns = self.clone();
        let connect = move || {
            ns.within(move || {
                let stream = TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                Ok(stream)
            })
        };
        let stream = tokio::task::spawn_blocking(connect)
            .await?
            .with_context(|| format!("connect from {} to {to}", self.name))?;
        tokio::net::TcpStream::from_std(stream).context("hand a connection to tokio")
    }
}
