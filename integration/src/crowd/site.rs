//! Where the crowd meets: network, registry, control and daemons without containerd, started anew for every run.
use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use tokio::time::Instant;

use super::{LINK, NODES};
use crate::{
    containerd::edition::Edition,
    control::Control,
    disk::Disk,
    http::Client,
    image::Image,
    net::{Net, Netns, Place},
    node::{NodePlan, ShoalNode, Surroundings},
    otlp::{self, Receiver},
    registry::{self, AccessLine, Front, Login, Registry},
    run::RunDirs,
    sweep::sweep,
    tls::Authority,
    tools::{ShoalPrograms, Tools},
    wait::eventually,
};

const REGISTRY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const CONTROL: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 3);
const REGISTRY_PORT: u16 = 443;
const MIRROR_PORT: u16 = 5080;
/// What a store needs beside the blob, and more.
const BESIDE: u64 = 64 << 20;
/// For two seconds after its start control lets nobody read the origin, until nodes have said what they hold: a crowd does not come
/// in those.
const SETTLED: Duration = Duration::from_millis(2500);

/// The repository of the blob.
pub(super) const REPOSITORY: &str = "lab/crowd";

/// Everything. Dropped from the first field to the last: daemons, then their disks, then the network.
pub(super) struct Site {
    daemons: Option<Daemons>,
    disks: Vec<Disk>,
    pub(super) registry: Registry,
    pub(super) net: Net,
    programs: ShoalPrograms,
    around: Surroundings,
    plans: Vec<NodePlan>,
    disk_bytes: u64,
    tls: bool,
    _traces: Receiver,
    dirs: RunDirs,
}

/// What runs of Shoal's.
pub(super) struct Daemons {
    pub(super) nodes: Vec<ShoalNode>,
    pub(super) control: Control,
}

impl Site {
    /// Network and registry; stores will have room for a blob of so many bytes. `tls`: whether daemons will show certificates.
    pub(super) async fn build(blob_bytes: u64, tls: bool) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("the lab makes network namespaces and needs root: run it with sudo, or `make bench`");
        }
        let (tools, programs) = (Tools::locate()?, ShoalPrograms::locate()?);
        for line in sweep().context("remove what a crashed run left")? {
            tracing::info!(removed = line, "left by a crashed run");
        }
        let dirs = RunDirs::create()?;
        let plans: Vec<NodePlan> = (1..=NODES).map(node).collect();
        let net = Net::build(&dirs.id, places(&plans), &[(IpAddr::V4(REGISTRY), registry::HOST.to_owned())])?;
        let authority = Authority::create(&dirs.state)?;
        let traces = Receiver::spawn(net.namespace("control")?.bind(otlp::PORT)?);
        let (place, state) = (net.namespace("registry")?, dirs.state.join("registry"));
        let kind = (Front::Bare, Login::Bearer);
        let registry = Registry::start(&tools.registry, &place, &state, &authority, kind).await?;
        let around = Surroundings {
            shoal_node: Some(programs.node.clone()),
            programs: tools.containerd(Edition::OWN.version)?,
            edition: Edition::OWN,
            root_ca: authority.root_file.clone(),
            control: CONTROL,
            join_token: None,
        };
        let disk_bytes = blob_bytes + blob_bytes / 4 + BESIDE;
        let (daemons, disks, _traces) = (None, Vec::new(), traces);
        Ok(Self { daemons, disks, registry, net, programs, around, plans, disk_bytes, tls, _traces, dirs })
    }

    pub(super) async fn push(&self, image: &Image) -> Result<()> {
        self.registry.push(image, REPOSITORY, "1").await
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.plans.iter().map(|plan| plan.name.as_str())
    }

    pub(super) fn namespace(&self, node: usize) -> Result<Netns> {
        self.net.namespace(&self.plans[node].name)
    }

    /// A client of a node's mirror, inside the node.
    pub(super) fn at_mirror(&self, node: usize) -> Result<Client> {
        Ok(Client::plain(&self.namespace(node)?, SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), MIRROR_PORT)))
    }

    /// A client of the registry, inside a node.
    pub(super) fn at_registry(&self, node: usize) -> Result<Client> {
        let registry = SocketAddr::from((REGISTRY, REGISTRY_PORT));
        Ok(Client::tls(&self.namespace(node)?, registry, registry::HOST, self.registry.tls()?))
    }

    /// Sets the link of a node, both ways.
    pub(super) fn shape(&self, node: usize, bits: u64) -> Result<()> {
        self.net.reshape(&self.plans[node].name, bits)
    }

    /// Ends the daemons and takes away what they stored.
    pub(super) fn stop_daemons(&mut self) -> Result<()> {
        self.daemons = None;
        self.disks.clear();
        for dir in self.names().chain(["control"]).map(|name| self.dirs.state.join(name)).collect::<Vec<_>>() {
            if dir.exists() {
                fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
            }
        }
        Ok(())
    }

    /// Starts control and all nodes anew, with empty stores, and waits until control knows them all.
    pub(super) async fn start_daemons(&mut self) -> Result<()> {
        self.stop_daemons()?;
        let control = self.net.namespace("control")?;
        let control = Control::start(&self.programs, &control, &self.dirs.state.join("control"), self.tls).await?;
        // Of this control: it is a new one each time, with an authority of its own.
        self.around.join_token = if self.tls { Some(control.invite(false).await?) } else { None };
        let started = Instant::now();
        let mut starts = Vec::new();
        for plan in &self.plans {
            let dir = self.dirs.state.join(&plan.name);
            let state = dir.join("shoal");
            fs::create_dir_all(&state).with_context(|| format!("create {}", state.display()))?;
            self.disks.push(Disk::in_memory(&state, self.disk_bytes)?);
            let (ns, around) = (self.net.namespace(&plan.name)?, &self.around);
            starts.push(async move { ShoalNode::start_alone(plan, &ns, &dir, around).await });
        }
        let nodes = futures::future::try_join_all(starts).await?;
        eventually(Duration::from_secs(15), "every node at control", || async {
            let connected =
                control.nodes().await?.iter().filter(|node| node.connected && node.cluster.is_some()).count();
            ensure!(connected == usize::from(NODES), "control knows {connected} nodes");
            Ok(())
        })
        .await?;
        tokio::time::sleep_until(started + SETTLED).await;
        self.daemons = Some(Daemons { nodes, control });
        Ok(())
    }

    pub(super) fn daemons(&self) -> Result<&Daemons> {
        self.daemons.as_ref().context("no daemon runs")
    }

    /// Whether a line of the registry's log is of a node.
    pub(super) fn is_of_a_node(&self, line: &AccessLine) -> bool {
        self.plans.iter().any(|plan| line.from == IpAddr::V4(plan.address))
    }
}

fn node(number: u8) -> NodePlan {
    // The stores' file systems are smaller than the usual reserve.
    let settings = BTreeMap::from([("store.reserve".to_owned(), "\"1MiB\"".to_owned())]);
    NodePlan { name: format!("a{number}"), address: Ipv4Addr::new(10, 77, 1, number), idc: String::new(), settings }
}

fn places(plans: &[NodePlan]) -> Vec<Place> {
    let place = |name: &str, address, rate| Place { name: name.to_owned(), address, rate, counted: false };
    let outside = [place("registry", REGISTRY, Some(LINK)), place("control", CONTROL, None)];
    outside.into_iter().chain(plans.iter().map(|plan| place(&plan.name, plan.address, Some(LINK)))).collect()
}
