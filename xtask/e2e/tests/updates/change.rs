//! Changes at random that leave the service `echo` callable: what is written, and in which order.

use std::collections::BTreeSet;

use millrace_e2e::load::Load;
use millrace_testkit::mesh::{Mesh, MeshPod};

/// Services that nobody calls, which share the port, and so the listener and the route configuration, of `echo`.
const OTHERS: u8 = 8;
/// What the rule of `echo` may say of a request's way. `both` are pods of every version, `v3` among them, which comes
/// and goes; the other two stay.
const SUBSETS: [(&str, &str); 3] = [
    ("v1", "{version: v1}"),
    ("v2", "{version: v2}"),
    ("all", "{app: echo}"),
];

/// Writes changes and counts them.
pub(super) struct Changes<'a> {
    mesh: &'a Mesh,
    guest: &'a MeshPod,
    load: &'a Load,
    random: fastrand::Rng,
    made: u64,
    /// Which of [`SUBSETS`] the `DestinationRule` has.
    subsets: Vec<usize>,
    /// Which of them the rule names; none where there is no rule or it names the service alone.
    named: Vec<usize>,
    others: [bool; OTHERS as usize],
    ready: bool,
    scoped: bool,
}

impl<'a> Changes<'a> {
    pub(super) fn new(mesh: &'a Mesh, guest: &'a MeshPod, load: &'a Load, seed: u64) -> Self {
        Self {
            mesh,
            guest,
            load,
            random: fastrand::Rng::with_seed(seed),
            made: 0,
            subsets: Vec::new(),
            named: Vec::new(),
            others: [false; OTHERS as usize],
            ready: true,
            scoped: false,
        }
    }

    /// How many objects were written or removed.
    pub(super) fn made(&self) -> u64 {
        self.made
    }

    /// Changes until so many objects were written, then leaves none behind but the services.
    pub(super) fn until(&mut self, updates: u64) -> anyhow::Result<()> {
        while self.made < updates {
            self.some()?;
        }
        self.remove("echo-rule.yaml")?;
        self.remove("echo-policy.yaml")?;
        self.remove("scope.yaml")?;
        self.announce(true)
    }

    /// One change, of one object or of several that belong together.
    fn some(&mut self) -> anyhow::Result<()> {
        match self.random.u8(..10) {
            0..3 => self.rule(),
            3 => self.policy(),
            4..6 => self.other_service(),
            6..8 => self.other_rule(),
            8 => self.guest(),
            _ => self.scope(),
        }
    }

    /// Another rule for `echo`, and the subsets that it names: before it, after it, or in the same moment.
    fn rule(&mut self) -> anyhow::Result<()> {
        let named: Vec<usize> = (0..SUBSETS.len()).filter(|_| self.random.bool()).collect();
        let mut subsets = named.clone();
        subsets.extend((0..SUBSETS.len()).filter(|s| !named.contains(s) && self.random.bool()));
        self.random.shuffle(&mut subsets);
        let (old, new) = (std::mem::replace(&mut self.named, named), subsets);
        match self.random.u8(..3) {
            // What the rule names goes before the rule does.
            0 => {
                self.subsets = new;
                self.write_policy()?;
                self.write_rule()
            }
            // The rule comes before what it names.
            1 => {
                self.subsets = new;
                self.write_rule()?;
                self.write_policy()
            }
            // As the books say: first more, then the rule, then less.
            _ => {
                let union: BTreeSet<usize> = old.iter().chain(&new).copied().collect();
                self.subsets = union.into_iter().collect();
                self.write_policy()?;
                self.write_rule()?;
                self.subsets = new;
                self.write_policy()
            }
        }
    }

    /// Another policy of the same subsets.
    fn policy(&mut self) -> anyhow::Result<()> {
        self.write_policy()
    }

    fn write_policy(&mut self) -> anyhow::Result<()> {
        if self.subsets.is_empty() && self.random.bool() {
            return self.remove("echo-policy.yaml");
        }
        let balancer = ["ROUND_ROBIN", "RANDOM", "LEAST_REQUEST"];
        let balancer = balancer[self.random.usize(..balancer.len())];
        let (connect, connections) = (self.random.u8(5..30), self.random.u16(2_000..2_100));
        let subsets = self.subsets.iter().map(|subset| SUBSETS[*subset]);
        let subsets = subsets.map(|(name, labels)| format!("{{name: {name}, labels: {labels}}}"));
        let subsets = subsets.collect::<Vec<_>>().join(", ");
        self.write(
            "echo-policy.yaml",
            &format!(
                "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: echo, namespace: default}}
spec:
  host: echo
  trafficPolicy:
    loadBalancer: {{simple: {balancer}}}
    connectionPool: {{tcp: {{connectTimeout: {connect}s, maxConnections: {connections}}}}}
  subsets: [{subsets}]
"
            ),
        )
    }

    fn write_rule(&mut self) -> anyhow::Result<()> {
        if self.named.is_empty() && self.random.bool() {
            return self.remove("echo-rule.yaml");
        }
        let destination = |subset: Option<usize>| match subset {
            Some(subset) => format!("{{host: echo, subset: {}}}", SUBSETS[subset].0),
            None => "{host: echo}".to_owned(),
        };
        let named = if self.named.is_empty() {
            vec![None]
        } else {
            self.named.iter().copied().map(Some).collect()
        };
        let shares = named.iter().enumerate().map(|(place, subset)| {
            let share = if place == 0 {
                100 - 7 * (named.len() - 1)
            } else {
                7
            };
            format!("{{destination: {}, weight: {share}}}", destination(*subset))
        });
        let split = shares.collect::<Vec<_>>().join(", ");
        let first = destination(named[0]);
        let timeout = self.random.u8(20..60);
        let http = match self.random.u8(..4) {
            0 => format!("  - route: [{split}]\n    timeout: {timeout}s\n"),
            1 => format!(
                "  - match: [{{uri: {{prefix: /load}}}}]
    route: [{split}]
    headers: {{request: {{set: {{x-change: \"{timeout}\"}}}}}}
  - route: [{{destination: {first}}}]\n"
            ),
            2 => format!(
                "  - match: [{{headers: {{x-never: {{exact: \"{timeout}\"}}}}}}]
    route: [{{destination: {first}}}]
  - route: [{split}]\n"
            ),
            _ => format!(
                "  - match: [{{uri: {{exact: /load}}}}]
    route: [{{destination: {first}}}]
    retries: {{attempts: 2, retryOn: refused-stream}}
  - route: [{split}]\n"
            ),
        };
        self.write(
            "echo-rule.yaml",
            &format!(
                "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: echo, namespace: default}}
spec:
  hosts: [echo]
  http:
{http}"
            ),
        )
    }

    /// A service that nobody calls comes or goes.
    fn other_service(&mut self) -> anyhow::Result<()> {
        let number = self.random.u8(..OTHERS);
        let there = &mut self.others[usize::from(number)];
        *there = !*there;
        let name = format!("other-{number}.yaml");
        if !*there {
            return self.remove(&name);
        }
        let ip = format!("10.96.8.{}", number + 1);
        let port = if self.random.bool() { 8080 } else { 9000 };
        let protocol = if self.random.bool() { "http" } else { "tcp" };
        self.write(
            &name,
            &format!(
                "apiVersion: v1
kind: Service
metadata: {{name: other-{number}, namespace: default}}
spec: {{clusterIP: {ip}, clusterIPs: [{ip}], selector: {{app: echo}}, ports: [{{name: {protocol}, port: {port}}}]}}
"
            ),
        )
    }

    /// A rule of a service that may not be there, which may name what nobody has or be none at all.
    fn other_rule(&mut self) -> anyhow::Result<()> {
        let number = self.random.u8(..OTHERS);
        let name = format!("other-rule-{number}.yaml");
        let weight = self.random.u8(1..100);
        match self.random.u8(..5) {
            0 => self.remove(&name),
            1 => self.write(&name, "kind: VirtualService\nspec: [\n"),
            2 => self.write(&name, &Self::rule_of(number, "nobody", "none", weight)),
            3 => self.write(&name, &Self::rule_of(number, "echo", "v1", weight)),
            _ => self.write(&name, &Self::rule_of(number, "echo", "v2", 250)),
        }
    }

    fn rule_of(number: u8, host: &str, subset: &str, weight: u8) -> String {
        format!(
            "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: other-{number}, namespace: default}}
spec:
  hosts: [other-{number}]
  http: [{{route: [{{destination: {{host: {host}, subset: {subset}}}, weight: {weight}}}]}}]
"
        )
    }

    /// The pod of the third version becomes ready or ceases to be.
    fn guest(&mut self) -> anyhow::Result<()> {
        let ready = !self.ready;
        self.announce(ready)
    }

    fn announce(&mut self, ready: bool) -> anyhow::Result<()> {
        self.ready = ready;
        self.guest.set_ready(ready)?;
        self.count()
    }

    /// What the namespace may call is said, or not; `echo` is among it.
    fn scope(&mut self) -> anyhow::Result<()> {
        self.scoped = !self.scoped;
        if !self.scoped {
            return self.remove("scope.yaml");
        }
        let hosts = ["./*", "*/*", "default/echo.default.svc.cluster.local"];
        let hosts = hosts[self.random.usize(..hosts.len())];
        self.write(
            "scope.yaml",
            &format!(
                "apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: scope, namespace: default}}
spec: {{egress: [{{hosts: [\"{hosts}\"]}}]}}
"
            ),
        )
    }

    fn write(&mut self, name: &str, yaml: &str) -> anyhow::Result<()> {
        self.mesh.pilot().apply(name, yaml)?;
        self.count()
    }

    /// Traffic goes on for a while before the next change, or does not, so that many changes are one push and many a
    /// push is half of a change.
    fn count(&mut self) -> anyhow::Result<()> {
        self.made += 1;
        if self.random.u8(..8) == 0 {
            self.load.more(self.random.u64(1..60))?;
        }
        Ok(())
    }

    /// What is not there already is no change.
    fn remove(&mut self, name: &str) -> anyhow::Result<()> {
        let there = self.mesh.pilot().config_dir()?.join(name).exists();
        if there {
            self.mesh.pilot().remove(name)?;
            self.count()?;
        }
        Ok(())
    }
}
