use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use shoal_base::units::Span;

/// Talks to shoal-control: clusters, nodes, why a node is where it is, and who may join, ask and change.
///
/// It shows the API token in SHOAL_TOKEN, or the one in a file.
///
/// Exit codes: 0 well, 1 failed here, 2 refused or misused, 3 not found, 4 conflict, 5 server unreachable, 6 not allowed, 7 failed at the
/// server, 8 it would change something (only with --detailed-exitcode), 9 asked and not answered: it may have been done.
#[derive(Debug, Parser)]
#[command(name = "shoalctl", version)]
pub struct Cli {
    /// The control service.
    #[arg(long, global = true, env = "SHOAL_SERVER", default_value = "http://127.0.0.1:6081", value_name = "URL")]
    pub(super) server: String,
    /// A PEM file with the authority that an `https://` server must be certified by: `ca.pem` of its state directory, unless it shows a
    /// certificate of yours. Without it: the system's.
    #[arg(long, global = true, env = "SHOAL_CA_FILE", value_name = "FILE")]
    pub(super) ca_file: Option<PathBuf>,
    /// A file with the API token. Without it: what SHOAL_TOKEN says.
    #[arg(long, global = true, env = "SHOAL_TOKEN_FILE", value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
    /// How to print answers.
    #[arg(long, short, global = true, value_enum, default_value_t = Output::Table)]
    pub(super) output: Output,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Clusters and their scopes.
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Make the clusters be as a file declares them.
    Apply(Apply),
    /// Live nodes.
    #[command(subcommand)]
    Node(NodeCommand),
    /// Say which cluster a node would belong to, and why.
    Explain(Place),
    /// Blobs that somebody holds or fetches.
    #[command(subcommand)]
    Blob(BlobCommand),
    /// Live flights: which node fetches which digest, and from whom.
    #[command(subcommand)]
    Flight(FlightCommand),
    /// How many clusters, nodes, flights and blobs there are, and what all nodes together read and gave since they started.
    Summary(SummaryArgs),
    /// Bytes by source in the last minutes.
    Traffic(TrafficArgs),
    /// Which share of an image each node has.
    #[command(subcommand)]
    Image(ImageCommand),
    /// Images brought to nodes before anybody pulls them.
    #[command(subcommand)]
    Preheat(PreheatCommand),
    /// Print what happens, until interrupted.
    Events(EventsArgs),
    /// What nodes join with.
    #[command(subcommand)]
    JoinToken(JoinTokenCommand),
    /// Nodes that have joined.
    #[command(subcommand)]
    Member(MemberCommand),
    /// Who may ask and change.
    #[command(subcommand)]
    ApiToken(ApiTokenCommand),
    /// What was changed by whom, newest first.
    Audit(AuditArgs),
    /// The certificate of the authority that certifies nodes.
    Ca,
    /// Whose token this is.
    Whoami,
    /// Print a script that completes commands in a shell. Needs no server.
    Completion {
        /// For which shell.
        shell: Shell,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum PreheatCommand {
    /// Bring an image to nodes of a cluster: all of them, unless some are said.
    Create(PreheatCreate),
    /// All of them, newest first.
    List(PreheatFilter),
    /// One, node by node.
    Show {
        /// Its id.
        preheat: String,
        /// What each node has of each configuration and layer.
        #[arg(long)]
        layers: bool,
    },
    /// Wait until one has ended; fails if it did not end well.
    Wait {
        /// Its id.
        preheat: String,
        /// Fail after so long, such as 10m. The preheat goes on.
        #[arg(long, value_name = "TIME")]
        timeout: Option<Span>,
    },
    /// Take one back. Nodes keep what they hold of it.
    Cancel {
        /// Its id.
        preheat: String,
    },
    /// Try again what failed or was taken back.
    Retry {
        /// Its id.
        preheat: String,
        #[command(flatten)]
        login: PreheatLogin,
        #[command(flatten)]
        wait: PreheatWait,
    },
}

#[derive(Debug, Args)]
pub(super) struct PreheatCreate {
    /// The image: `alpine:3`, `registry.example/app@sha256:…`.
    pub(super) image: String,
    /// Cluster, by name or id.
    #[arg(long, value_name = "CLUSTER")]
    pub(super) cluster: String,
    /// Its seeds.
    #[arg(long, conflicts_with_all = ["percent", "nodes"])]
    pub(super) seeds: bool,
    /// So many of a hundred of its nodes, at least one.
    #[arg(long, value_name = "N", conflicts_with = "nodes", value_parser = clap::value_parser!(u8).range(1..=100))]
    pub(super) percent: Option<u8>,
    /// This node, by id or name. May be said several times.
    #[arg(long = "node", value_name = "NODE")]
    pub(super) nodes: Vec<String>,
    /// `os/architecture[/variant]`. May be said several times; without it, all images of an index.
    #[arg(long = "platform", value_name = "PLATFORM")]
    pub(super) platforms: Vec<String>,
    #[command(flatten)]
    pub(super) login: PreheatLogin,
    #[command(flatten)]
    pub(super) wait: PreheatWait,
}

/// Whether to wait for what begins.
#[derive(Debug, Args)]
pub(super) struct PreheatWait {
    /// Wait until it has ended; fails if it did not end well.
    #[arg(long)]
    pub(super) wait: bool,
    /// With --wait: fail after so long, such as 10m. The preheat goes on.
    #[arg(long, value_name = "TIME", requires = "wait")]
    pub(super) timeout: Option<Span>,
}

/// What is sent for the registry, and kept in memory alone. Without it, nodes log in with what they have themselves.
#[derive(Debug, Args)]
pub(super) struct PreheatLogin {
    /// A docker `config.json` with the login for the registry.
    #[arg(long, value_name = "FILE", conflicts_with = "user")]
    pub(super) docker_config: Option<PathBuf>,
    /// A user of the registry; needs --password-stdin.
    #[arg(long, requires = "password_stdin")]
    pub(super) user: Option<String>,
    /// Read the password from standard input.
    #[arg(long, requires = "user")]
    pub(super) password_stdin: bool,
}

#[derive(Debug, Args)]
pub(super) struct PreheatFilter {
    /// Only onto this cluster, by name or id.
    #[arg(long, value_name = "CLUSTER")]
    pub(super) cluster: Option<String>,
    /// Only those that are `waiting`, `running`, `done`, `failed` or `cancelled`.
    #[arg(long, value_name = "STATE")]
    pub(super) state: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum BlobCommand {
    /// All of them, by digest, then cluster.
    List(BlobFilter),
    /// One, cluster by cluster, with who has it.
    Show {
        /// `sha256:` and 64 hex digits.
        digest: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct BlobFilter {
    /// Only in this cluster, by name or id.
    #[arg(long, value_name = "CLUSTER")]
    pub(super) cluster: Option<String>,
    /// Only digests that begin so.
    #[arg(long, value_name = "PREFIX")]
    pub(super) digest: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum FlightCommand {
    /// All of them, by node, then digest.
    List(FlightFilter),
}

#[derive(Debug, Args)]
pub(super) struct FlightFilter {
    /// Only in this cluster, by name or id.
    #[arg(long, value_name = "CLUSTER")]
    pub(super) cluster: Option<String>,
    /// Only those of this live node, by id or name.
    #[arg(long, value_name = "NODE")]
    pub(super) node: Option<String>,
    /// Only those of this digest.
    #[arg(long, value_name = "DIGEST")]
    pub(super) digest: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct SummaryArgs {
    /// Only of this cluster, by name or id.
    #[arg(long, value_name = "CLUSTER")]
    pub(super) cluster: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct TrafficArgs {
    /// Only of this cluster, by name or id.
    #[arg(long, value_name = "CLUSTER")]
    pub(super) cluster: Option<String>,
    /// Of so many minutes, 60 at most.
    #[arg(long, value_name = "MINUTES", default_value_t = 10)]
    pub(super) minutes: u32,
}

#[derive(Debug, Subcommand)]
pub(super) enum ImageCommand {
    /// What each node has of the blobs of an image.
    Share(ShareArgs),
}

#[derive(Debug, Args)]
pub(super) struct ShareArgs {
    /// An image manifest (JSON): its config and layers count. `-` reads standard input.
    #[arg(long, value_name = "FILE")]
    pub(super) manifest: Option<PathBuf>,
    /// A blob that counts too. May be given many times.
    #[arg(value_name = "DIGEST", required_unless_present = "manifest")]
    pub(super) digests: Vec<String>,
    /// Only in this cluster, by name or id.
    #[arg(long, value_name = "CLUSTER")]
    pub(super) cluster: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct EventsArgs {
    /// Only events of this cluster, by name or id.
    #[arg(long, value_name = "CLUSTER")]
    pub(super) cluster: Option<String>,
    /// Only events about these.
    #[arg(long, value_enum)]
    pub(super) about: Option<About>,
    /// End after so many.
    #[arg(long, short = 'n', value_name = "N")]
    pub(super) count: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum About {
    /// Nodes.
    Node,
    /// Clusters.
    Cluster,
    /// Flights.
    Flight,
    /// Preheats.
    Preheat,
    /// Join tokens; needs an operator's token.
    JoinToken,
    /// API tokens; needs an admin's.
    ApiToken,
    /// Members.
    Member,
}

impl About {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Cluster => "cluster",
            Self::Flight => "flight",
            Self::Preheat => "preheat",
            Self::JoinToken => "join-token",
            Self::ApiToken => "api-token",
            Self::Member => "member",
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum JoinTokenCommand {
    /// Make a token and print it, once.
    Create(CreateJoinToken),
    /// All tokens, without their secrets.
    List(JoinTokenFilter),
    /// One token, without its secret.
    Show {
        /// Its id.
        id: String,
    },
    /// Remove a token. Nodes that joined by it stay.
    Delete {
        /// Its id.
        id: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct JoinTokenFilter {
    /// Only those that bind nodes to this cluster, by name or id.
    #[arg(long, value_name = "CLUSTER")]
    pub(super) cluster: Option<String>,
    /// Only those for nodes of this role.
    #[arg(long, value_enum)]
    pub(super) role: Option<NodeRole>,
    /// Only those that count; with `false`, only those whose time or uses are over.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "true|false")]
    pub(super) valid: Option<bool>,
}

#[derive(Debug, Args)]
pub(super) struct CreateJoinToken {
    /// Nodes that join by it belong to this cluster, by name or id, whatever their facts say.
    #[arg(long, value_name = "CLUSTER")]
    pub(super) cluster: Option<String>,
    /// What such a node may be.
    #[arg(long, value_enum, default_value_t = NodeRole::Node)]
    pub(super) role: NodeRole,
    /// How long it counts, at most 8784h.
    #[arg(long, value_name = "TIME", default_value = "1h")]
    pub(super) ttl: String,
    /// How many nodes may join by it.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) uses: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum NodeRole {
    /// An ordinary node.
    Node,
    /// One that may read registries first.
    Seed,
}

impl NodeRole {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Seed => "seed",
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum MemberCommand {
    /// All members.
    List(MemberFilter),
    /// One member.
    Show {
        /// Its id.
        node: String,
    },
    /// Take a node's certificates away, everywhere and at once, and give it no other.
    Revoke {
        /// Its id.
        node: String,
    },
    /// Forget a node, so that it may join anew: with another key, or after it was revoked.
    Delete {
        /// Its id.
        node: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct MemberFilter {
    /// Only those of this cluster, by name or id: bound to it, or live in it and bound to none.
    #[arg(long, value_name = "CLUSTER")]
    pub(super) cluster: Option<String>,
    /// Only those whose id begins so, or whose host name does while they are live.
    #[arg(long, value_name = "PREFIX")]
    pub(super) name: Option<String>,
    /// Only those that may be of this role.
    #[arg(long, value_enum)]
    pub(super) role: Option<NodeRole>,
    /// Only those that are live; with `false`, only those that are not.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "true|false")]
    pub(super) live: Option<bool>,
    /// Only those that were revoked; with `false`, only those that were not.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "true|false")]
    pub(super) revoked: Option<bool>,
}

#[derive(Debug, Subcommand)]
pub(super) enum ApiTokenCommand {
    /// Make a token and print it, once.
    Create(CreateApiToken),
    /// All tokens, without their secrets.
    List(ApiTokenFilter),
    /// One token, without its secret.
    Show {
        /// Its name or id.
        token: String,
    },
    /// Remove a token.
    Delete {
        /// Its name or id.
        token: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct ApiTokenFilter {
    /// Only those whose name begins so.
    #[arg(long, value_name = "PREFIX")]
    pub(super) name: Option<String>,
    /// Only those of this role.
    #[arg(long, value_enum)]
    pub(super) role: Option<ApiRole>,
    /// Only those whose bearer reaches this cluster, by name or id.
    #[arg(long, value_name = "CLUSTER")]
    pub(super) cluster: Option<String>,
    /// Only those that count; with `false`, only those whose time is over.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "true|false")]
    pub(super) valid: Option<bool>,
}

#[derive(Debug, Args)]
pub(super) struct CreateApiToken {
    /// Whose it is, for the audit log. Unique.
    pub(super) name: String,
    /// What its bearer may do: a viewer reads, an operator changes clusters and lets nodes in, an admin makes tokens.
    #[arg(long, value_enum)]
    pub(super) role: ApiRole,
    /// The only clusters that its bearer sees and changes, by name or id. May be given many times, or several separated by commas.
    #[arg(long = "cluster", value_name = "CLUSTER", value_delimiter = ',')]
    pub(super) clusters: Vec<String>,
    /// How long it counts, at most 8784h. Without it: until it is removed.
    #[arg(long, value_name = "TIME")]
    pub(super) ttl: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ApiRole {
    /// Reads.
    Viewer,
    /// Changes clusters and nodes.
    Operator,
    /// Makes tokens.
    Admin,
}

impl ApiRole {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct AuditArgs {
    /// How many entries, at most 1000.
    #[arg(long, short = 'n', default_value_t = 50)]
    pub(super) limit: u32,
    /// Only entries before this one, by its number.
    #[arg(long, value_name = "SEQ")]
    pub(super) before: Option<u64>,
    /// Only what this one did: an API token's name, `node <id>` or `shoal-control`.
    #[arg(long)]
    pub(super) who: Option<String>,
    /// Only this action, such as `cluster.create`, or all about such things, such as `cluster`.
    #[arg(long)]
    pub(super) action: Option<String>,
    /// Only what was done to this one, named as it was then, such as a cluster's name.
    #[arg(long)]
    pub(super) subject: Option<String>,
    /// Only what was done at this time or later, such as 2026-11-23T12:00:00Z.
    #[arg(long, value_name = "TIME")]
    pub(super) since: Option<String>,
    /// Only what was done before this time.
    #[arg(long, value_name = "TIME")]
    pub(super) until: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum ClusterCommand {
    /// Make a cluster.
    Create(Create),
    /// All clusters, oldest first.
    List,
    /// One cluster.
    Show(Named),
    /// Change what is given, and leave the rest.
    Update(Update),
    /// Delete a cluster. Its nodes move to where the other scopes put them; those that joined for it alone run alone, and must join anew.
    Delete(Delete),
}

#[derive(Debug, Args)]
pub(super) struct Named {
    /// Name or id.
    pub(super) cluster: String,
}

#[derive(Debug, Args)]
pub(super) struct Create {
    /// Unique without regard to case.
    pub(super) name: String,
    /// Nodes that match nothing come here. It takes this from whichever cluster has it.
    #[arg(long)]
    pub(super) default: bool,
    /// Data centres, alternatives separated by bars.
    #[arg(long, default_value = "")]
    pub(super) idc: String,
    /// Location, a path separated by bars.
    #[arg(long, default_value = "")]
    pub(super) location: String,
    /// A network. May be given many times, or several separated by commas.
    #[arg(long = "cidr", value_name = "CIDR", value_delimiter = ',')]
    pub(super) cidrs: Vec<String>,
    /// Only print what would change, and which live nodes would move.
    #[arg(long)]
    pub(super) dry_run: bool,
}

#[derive(Debug, Args)]
pub(super) struct Update {
    /// Name or id.
    pub(super) cluster: String,
    /// A new name.
    #[arg(long)]
    pub(super) name: Option<String>,
    /// Whether nodes that match nothing come here. It takes this from whichever cluster has it.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "true|false")]
    pub(super) default: Option<bool>,
    /// Data centres, alternatives separated by bars. Empty: none any more.
    #[arg(long)]
    pub(super) idc: Option<String>,
    /// Location, a path separated by bars. Empty: none any more.
    #[arg(long)]
    pub(super) location: Option<String>,
    /// Networks; they replace all that the cluster has. May be given many times, or several separated by commas.
    #[arg(long = "cidr", value_name = "CIDR", value_delimiter = ',')]
    pub(super) cidrs: Vec<String>,
    /// No networks any more.
    #[arg(long, conflicts_with = "cidrs")]
    pub(super) no_cidrs: bool,
    /// A network more; the others stay. May be given many times, or several separated by commas.
    #[arg(long = "add-cidr", value_name = "CIDR", value_delimiter = ',', conflicts_with_all = ["cidrs", "no_cidrs"])]
    pub(super) add_cidrs: Vec<String>,
    /// One of its networks less; the others stay. May be given many times, or several separated by commas.
    #[arg(long = "remove-cidr", value_name = "CIDR", value_delimiter = ',', conflicts_with_all = ["cidrs", "no_cidrs"])]
    pub(super) remove_cidrs: Vec<String>,
    /// Only if the cluster is at this version: a number, or ID.VERSION (its ETag), which no other cluster that gets its name has. Without
    /// it: the one that it has when this begins. `*`: whichever it has.
    #[arg(long, value_name = "VERSION")]
    pub(super) if_version: Option<String>,
    /// Only print what would change, and which live nodes would move.
    #[arg(long)]
    pub(super) dry_run: bool,
}

#[derive(Debug, Args)]
pub(super) struct Delete {
    /// Name or id.
    pub(super) cluster: String,
    /// Also if live nodes are in it, or if it is the default.
    #[arg(long)]
    pub(super) force: bool,
    /// Only if the cluster is at this version: a number, or ID.VERSION (its ETag), which no other cluster that gets its name has. Without
    /// it: the one that it has when this begins. `*`: whichever it has.
    #[arg(long, value_name = "VERSION")]
    pub(super) if_version: Option<String>,
    /// Only print what would change, and which live nodes would move.
    #[arg(long)]
    pub(super) dry_run: bool,
}

#[derive(Debug, Args)]
pub(super) struct Apply {
    /// A TOML file with any number of [[cluster]]: name, default, idc, location, cidrs. `-` reads standard input.
    #[arg(long, short, value_name = "FILE")]
    pub(super) file: PathBuf,
    /// Only print what would change.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// End with exit code 8 if something would change.
    #[arg(long, requires = "dry_run")]
    pub(super) detailed_exitcode: bool,
    /// Only if the clusters are at this version, which --dry-run prints: nobody changed any of them since. Without it: whatever they are like.
    #[arg(long, value_name = "VERSION")]
    pub(super) if_version: Option<String>,
    /// Delete clusters that the file does not have.
    #[arg(long)]
    pub(super) prune: bool,
    /// Prune clusters that have live nodes, too.
    #[arg(long, requires = "prune")]
    pub(super) force: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum NodeCommand {
    /// All live nodes.
    List(NodeFilter),
    /// One live node.
    Show {
        /// Its id.
        node: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct NodeFilter {
    /// Only nodes of this cluster, by name or id. Empty: those that run alone.
    #[arg(long, value_name = "CLUSTER")]
    pub(super) cluster: Option<String>,
    /// Only nodes whose host name, or id, begins so.
    #[arg(long, value_name = "PREFIX")]
    pub(super) name: Option<String>,
    /// Only nodes of this role.
    #[arg(long, value_enum)]
    pub(super) role: Option<NodeRole>,
    /// Only nodes in this state: connected or lost.
    #[arg(long, value_parser = ["connected", "lost"])]
    pub(super) state: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Place {
    /// The node's address.
    #[arg(long)]
    pub(super) ip: String,
    /// The node's data centre.
    #[arg(long, default_value = "")]
    pub(super) idc: String,
    /// The node's location, `a|b|c`.
    #[arg(long, default_value = "")]
    pub(super) location: String,
    /// The cluster that the node's config names.
    #[arg(long, value_name = "NAME")]
    pub(super) pin: Option<String>,
}
