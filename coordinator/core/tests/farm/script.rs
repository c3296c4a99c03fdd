//! A tiny language for farms: one line is one step, and every step has lines of result. The words are listed at [`Script::run`].

use std::collections::BTreeMap;

use kiln_core::{Asker, Command, Effect, Farm, Limits, Placement, Resolution, ResolvedInput, plan};
use kiln_wire::{
    Account, AttemptId, BuildId, BuiltOutput, DrvPath, Epoch, FailureClass, JobKind, JobSpec, Lease, LogIndex, Measured, Order, Outcome,
    Priority, ProjectName, RequestId, Share, ShareKey, Subject, TenantName, Timestamp,
};

use crate::facts::{built, drv, failed, offer, output_name, output_path, root, spec, worker};
use crate::text;

/// What a farm at the newest version does.
const LIMITS: Limits = Limits { copies: true, ..Limits::STANDARD };

/// A farm that is led through a script.
pub struct Script {
    farm: Farm,
    index: u64,
    now: Timestamp,
    /// Attributes of jobs, as `job` lines gave them.
    attributes: BTreeMap<String, Vec<(String, String)>>,
    specs: BTreeMap<DrvPath, JobSpec>,
    leases: BTreeMap<String, Lease>,
    builds: BTreeMap<u64, BuildId>,
}

impl Script {
    pub fn new() -> Self {
        Self {
            farm: Farm::new(),
            index: 0,
            now: Timestamp(0),
            attributes: BTreeMap::new(),
            specs: BTreeMap::new(),
            leases: BTreeMap::new(),
            builds: BTreeMap::new(),
        }
    }

    /// Runs one line:
    /// `workers w1=2 w2=1` · `worker w1 slots=1 cores=4 mem=2048 systems=a,b features=c speed=500 keep=gcc,lib` · `lose w1 [epoch=N] [judge]` ·
    /// `job gcc mem=N cores=N system=S features=a,b kind=fod|builtin local=yes resolve=yes outputs=out,dev|out,dev?` (for later
    /// graphs) ·
    /// `stage 1: app→lib; lib→gcc` · `submit 1 [keep-going] [roots=app] [tenant=T [project=P] [priority=N] [security]] [: graph]` ·
    /// `share T[/P] [weight=N [priority=N]]` · `bump 1|gcc [priority=N]` · `restart 1|gcc` · `stop 1|gcc` (as `kiln cancel`) ·
    /// `preempt gcc` · `plan` · `go` (plan and assign) ·
    /// `assign gcc@w1 [epoch=N]` · `copy gcc@w2 [of=7] [epoch=N] [light]` (beside attempt 7, or the first one that runs) · `finish gcc [first|second] [built|fail|limit|oom|infra|cancelled] [peak=MIB] [of=gcc#7] [content=N] [outputs=a,b] [judge]` ·
    /// `resolve app as=r [outputs=out] [exists=yes|impossible=yes|grow=9 needs=made,other] [content=N]: lib gcc!dev` (its
    /// inputs) ·
    /// `drain w1` · `undrain w1` · `publish gcc` · `cancel 1` · `retire 1` · `revoke gcc` · `due` · `import gcc=60` (seconds) · `time 2000` · `jobs` · `build 1` · `pending`
    pub fn run(&mut self, line: &str) -> Vec<String> {
        let (head, graph) = line.split_once(':').unwrap_or((line, ""));
        let mut words = head.split_whitespace();
        let verb = words.next().expect("a step has a verb");
        let words: Vec<&str> = words.collect();
        match verb {
            "plan" => return self.plan(),
            "jobs" => return text::jobs(&self.farm),
            "build" => return text::build(&self.farm, self.build(words[0])),
            "pending" => return self.farm.pending_effects().iter().map(text::effect).collect(),
            "time" => {
                self.now = Timestamp(words[0].parse().expect("a time in milliseconds"));
                return Vec::new();
            }
            "job" => {
                self.attributes.insert(words[0].to_owned(), options(&words[1..]));
                return Vec::new();
            }
            _ => {}
        }
        let commands = self.commands(verb, &words, graph);
        commands.into_iter().flat_map(|command| self.apply(command)).collect()
    }

    fn plan(&self) -> Vec<String> {
        let (plan, report) = plan(&self.farm, self.now, &LIMITS);
        text::plan(&plan, &report)
    }

    fn commands(&mut self, verb: &str, words: &[&str], graph: &str) -> Vec<Command> {
        let now = self.now;
        let request = |word: &str| RequestId(word.parse().expect("a request is a number"));
        match verb {
            "workers" => options(words).iter().map(|(name, slots)| self.register(name, &[("slots".to_owned(), slots.clone())])).collect(),
            "worker" => vec![self.register(words[0], &options(&words[1..]))],
            "lose" => {
                let epoch = self.epoch(words[0], &options(&words[1..]));
                vec![Command::Lose { worker: worker(words[0]), epoch, judge: words.contains(&"judge"), now }]
            }
            "stage" => vec![Command::Stage { request: request(words[0]), jobs: self.graph(graph), now }],
            "check" => {
                let derivations = words[1].split(',').map(drv).collect();
                vec![Command::Check { request: request(words[0]), derivations, now }]
            }
            "submit" => self.submit(request(words[0]), &words[1..], graph),
            "go" => {
                let (plan, _) = plan(&self.farm, now, &LIMITS);
                let preempt = plan.preemptions.into_iter().map(|lease| Command::Preempt { lease, now });
                let copy = plan.copies.into_iter().map(|(of, placement)| Command::Copy { of, placement, now });
                preempt.chain([Command::Assign { placements: plan.placements, now }]).chain(copy).collect()
            }
            "preempt" => {
                let live = self.farm.live_leases(&drv(words[0]));
                let second = live.get(1).filter(|_| words.contains(&"second"));
                let first = live.first().filter(|_| words.contains(&"first"));
                vec![Command::Preempt { lease: first.or(second).cloned().unwrap_or_else(|| self.lease(words[0])), now }]
            }
            "bump" | "restart" | "stop" => vec![self.steer(verb, words[0], &options(&words[1..]))],
            "assign" => {
                let (job, name) = words[0].split_once('@').expect("job@worker");
                let epoch = self.epoch(name, &options(&words[1..]));
                vec![Command::Assign {
                    placements: vec![Placement {
                        derivation: drv(job),
                        worker: worker(name),
                        epoch,
                        resources: None,
                        light: false,
                        after: None,
                    }],
                    now,
                }]
            }
            "copy" => vec![self.copy(words)],
            "import" => options(words).iter().map(|(pname, seconds)| import(pname, seconds, now)).collect(),
            "finish" => vec![self.finish(words[0], &words[1..])],
            "resolve" => vec![self.resolve(words[0], &options(&words[1..]), graph)],
            "publish" => vec![Command::Publish { derivation: drv(words[0]), now }],
            "cancel" => vec![Command::Cancel { build: self.build(words[0]), now }],
            "retire" => vec![Command::Retire { build: self.build(words[0]), now }],
            "drain" => vec![Command::Drain { worker: worker(words[0]), drain: true, now }],
            "undrain" => vec![Command::Drain { worker: worker(words[0]), drain: false, now }],
            "revoke" => vec![Command::Revoke { lease: self.lease(words[0]), now }],
            "share" => {
                let options = options(&words[1..]);
                let weight = option(&options, "weight").map(|weight| weight.parse().expect("a weight"));
                let priority = Priority::from(option(&options, "priority").map_or(0, |points| points.parse().expect("points")));
                let share = weight.map(|weight| Share { weight, priority, may_use_security: false });
                vec![Command::SetShare { key: ShareKey::parse(words[0]).expect("a key"), share, now }]
            }
            "due" => self.farm.due(now),
            other => panic!("no such step: {other}"),
        }
    }

    /// Applies a command, and checks what must hold after any command.
    fn apply(&mut self, command: Command) -> Vec<String> {
        self.index += 1;
        let effects = self.farm.apply(LogIndex(self.index), command);
        self.farm.check_invariants().expect("every invariant holds after every command");
        let copy = Farm::from_snapshot(&self.farm.to_snapshot()).expect("a farm's snapshot can be read");
        assert_eq!(copy, self.farm, "a farm survives its snapshot");
        for effect in &effects {
            if let Effect::Dispatch { lease, .. } = effect {
                let name = lease.derivation.name();
                self.leases.insert(format!("{name}#{}", lease.attempt), lease.clone());
                self.leases.insert(name.to_owned(), lease.clone());
            }
            if let Effect::Answer(kiln_core::Answer::Submitted { request, build }) = effect {
                self.builds.insert(request.0, *build);
            }
        }
        effects.iter().map(text::effect).collect()
    }

    fn register(&self, name: &str, options: &[(String, String)]) -> Command {
        let slots = option(options, "slots").map_or(1, |slots| slots.parse().expect("slots are a number"));
        let mut offer = offer(slots);
        let list = |text: &str| text.split(',').map(str::to_owned).collect();
        let mut attempts = Vec::new();
        for (key, value) in options {
            match key.as_str() {
                "slots" => {}
                "speed" => offer.speed_per_mille = value.parse().expect("a speed is in per mille"),
                "cores" => offer.capacity.cores = value.parse().expect("cores are a number"),
                "mem" => offer.capacity.memory_mib = value.parse().expect("memory is a number"),
                "systems" => offer.systems = list(value),
                "features" => offer.features = list(value),
                "keep" => attempts = value.split(',').map(|job| self.lease(job)).collect(),
                other => panic!("no such option of a worker: {other}"),
            }
        }
        Command::Register { worker: worker(name), offer, attempts, since: None, judge: false, now: self.now }
    }

    fn submit(&mut self, request: RequestId, words: &[&str], graph: &str) -> Vec<Command> {
        let options = options(words);
        let jobs = self.graph(graph);
        let roots = match option(&options, "roots") {
            Some(names) => names.split(',').map(root).collect(),
            None => jobs.iter().map(|job| root(job.derivation.name())).collect(),
        };
        let keep_going = words.contains(&"keep-going");
        let asker = option(&options, "tenant").map(|tenant| Asker {
            account: Account {
                tenant: Some(TenantName::parse(tenant).expect("a tenant's name")),
                project: option(&options, "project").map(|project| ProjectName::parse(project).expect("a project's name")),
            },
            priority: Priority::from(option(&options, "priority").map_or(0, |points| points.parse().expect("points"))),
            security: words.contains(&"security"),
            trace: None,
        });
        let now = self.now;
        let stage = (!jobs.is_empty()).then_some(Command::Stage { request, jobs, now });
        stage.into_iter().chain([Command::Submit { request, name: format!("r{request}"), roots, keep_going, asker, now }]).collect()
    }

    /// Reads `app→lib gcc; lib→gcc; doc`. Jobs that are only named as inputs are jobs too, unless written `!gcc`.
    fn graph(&mut self, text: &str) -> Vec<JobSpec> {
        let mut inputs: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for part in text.split(';').map(str::trim).filter(|part| !part.is_empty()) {
            let (job, needs) = part.split_once('→').unwrap_or((part, ""));
            for need in needs.split_whitespace() {
                if !need.starts_with('!') {
                    inputs.entry(need).or_default();
                }
                inputs.entry(job.trim()).or_default().push(need.trim_start_matches('!'));
            }
            inputs.entry(job.trim()).or_default();
        }
        let jobs: Vec<JobSpec> = inputs.iter().map(|(job, inputs)| self.spec(job, inputs)).collect();
        self.specs.extend(jobs.iter().map(|job| (job.derivation.clone(), job.clone())));
        jobs
    }

    fn spec(&self, name: &str, inputs: &[&str]) -> JobSpec {
        let mut spec = spec(name, inputs);
        for (key, value) in self.attributes.get(name).into_iter().flatten() {
            match key.as_str() {
                "mem" => spec.resources.memory_mib = value.parse().expect("memory is a number"),
                "cores" => spec.resources.cores = value.parse().expect("cores are a number"),
                "system" => spec.system = value.clone(),
                "features" => spec.required_features = value.split(',').map(str::to_owned).collect(),
                "kind" => spec.kind = if value == "fod" { JobKind::FixedOutput } else { JobKind::Builtin },
                "local" => spec.prefer_local = value == "yes",
                "resolve" => spec.resolve = value == "yes",
                "outputs" => {
                    // A question mark: the path is not known before the build.
                    let output = |text: &str| match text.strip_suffix('?') {
                        Some(output) => (output_name(output), None),
                        None => (output_name(text), Some(output_path(name, text))),
                    };
                    spec.outputs = value.split(',').map(output).collect();
                }
                other => panic!("no such attribute of a job: {other}"),
            }
        }
        spec
    }

    /// A number is a submission, anything else a job.
    fn steer(&self, verb: &str, subject: &str, options: &[(String, String)]) -> Command {
        let subject = match subject.parse::<u64>() {
            Ok(_) => Subject::Build(self.build(subject)),
            Err(_) => Subject::Job(drv(subject)),
        };
        let points = option(options, "priority").map_or(100, |points| points.parse().expect("points"));
        let order = match verb {
            "bump" => Order::Bump(Priority::from(points)),
            "restart" => Order::Restart,
            _ => Order::Cancel,
        };
        Command::Steer { subject, order, by: "client/ann".to_owned(), now: self.now }
    }

    fn copy(&self, words: &[&str]) -> Command {
        let (job, name) = words[0].split_once('@').expect("job@worker");
        let options = options(&words[1..]);
        let live = self.farm.live_lease(&drv(job)).map_or(AttemptId(0), |lease| lease.attempt);
        let of = option(&options, "of").map_or(live, |of| AttemptId(of.parse().expect("an attempt is a number")));
        let epoch = self.epoch(name, &options);
        let (derivation, worker, light) = (drv(job), worker(name), words.contains(&"light"));
        Command::Copy { of, placement: Placement { derivation, worker, epoch, resources: None, light, after: None }, now: self.now }
    }

    fn finish(&self, job: &str, words: &[&str]) -> Command {
        let options = options(words);
        let mut lease = self.lease(job);
        if let Some((of, (_, attempt))) = option(&options, "of").and_then(|of| Some((of, of.split_once('#')?))) {
            lease.attempt = AttemptId(attempt.parse().expect("an attempt is a number"));
            lease = self.leases.get(of).cloned().unwrap_or(lease);
        }
        let live = self.farm.live_leases(&drv(job));
        let chosen = match (words.contains(&"first"), words.contains(&"second")) {
            (true, _) => live.first(),
            (false, second) => live.get(1).filter(|_| second),
        };
        lease = chosen.cloned().unwrap_or(lease);
        if let Some(name) = option(&options, "by") {
            lease.worker = worker(name);
        }
        let peak = option(&options, "peak").map_or(0, |peak| peak.parse().expect("memory is a number"));
        let content = option(&options, "content").map_or(1, |content| content.parse().expect("a byte"));
        let class = |class, message| failed(class, message, peak);
        let mut outcome = match words.first().copied().unwrap_or("built") {
            "fail" => class(FailureClass::BuildFailure, "builder exited with 1"),
            "limit" => class(FailureClass::LimitExceeded, "ran for more than 1 h"),
            "oom" => class(FailureClass::OutOfMemory, "killed by its memory limit"),
            "infra" => class(FailureClass::Infrastructure, "disk full"),
            "cancelled" => class(FailureClass::Cancelled, "worker shuts down"),
            _ => built(&self.specs[&drv(job)], content),
        };
        if let (Some(names), Outcome::Built { outputs, .. }) = (option(&options, "outputs"), &mut outcome) {
            let output = |name: &str| BuiltOutput { name: output_name(name), info: crate::facts::info(output_path(job, name), content) };
            *outputs = names.split(',').map(output).collect();
        }
        Command::Finish { lease, outcome, learn: words.contains(&"learn"), judge: words.contains(&"judge"), now: self.now }
    }

    /// Inputs are said to be where jobs of the test put their outputs; one that is called `lib=other` is said to be at `other`'s.
    fn resolve(&self, job: &str, options: &[(String, String)], inputs: &str) -> Command {
        let input = |text: &str| {
            let (text, at) = text.split_once('=').unwrap_or((text, text.split('!').next().expect("a name")));
            let (input, output) = text.split_once('!').unwrap_or((text, "out"));
            ResolvedInput { derivation: drv(input), output: output_name(output), path: output_path(at, output) }
        };
        let derivation = drv(option(options, "as").unwrap_or("r"));
        let names = option(options, "outputs").into_iter().flat_map(|names| names.split(','));
        let content = option(options, "content").map_or(1, |content| content.parse().expect("a byte"));
        let info = |name: &str| crate::facts::info(output_path(job, name), content);
        let to = if option(options, "impossible").is_some() {
            Resolution::Impossible { message: "two variables have one name".to_owned() }
        } else if let Some(request) = option(options, "grow") {
            let needs = option(options, "needs").into_iter().flat_map(|needs| needs.split(',')).map(drv).collect();
            Resolution::Grow { request: RequestId(request.parse().expect("a request is a number")), needs }
        } else if option(options, "exists").is_some() {
            let outputs = names.map(|name| BuiltOutput { name: output_name(name), info: info(name) }).collect();
            Resolution::Exists { derivation, outputs }
        } else {
            Resolution::Build { derivation, outputs: names.map(|name| (output_name(name), output_path(job, name))).collect() }
        };
        Command::Resolve { derivation: drv(job), inputs: inputs.split_whitespace().map(input).collect(), to, now: self.now }
    }

    /// The last lease that was given for a job, live or not.
    fn lease(&self, job: &str) -> Lease {
        self.leases.get(job).cloned().unwrap_or_else(|| panic!("{job} was never leased"))
    }

    fn build(&self, request: &str) -> BuildId {
        let request: u64 = request.parse().expect("a build is named by its request");
        self.builds.get(&request).copied().unwrap_or(BuildId(u64::MAX))
    }

    fn epoch(&self, name: &str, options: &[(String, String)]) -> Epoch {
        if let Some(epoch) = option(options, "epoch") {
            return Epoch(epoch.parse().expect("an epoch is a number"));
        }
        let known = self.farm.registrations().find(|(other, _)| **other == worker(name));
        known.map_or(Epoch(0), |(_, epoch)| epoch)
    }
}

fn import(pname: &str, seconds: &str, now: Timestamp) -> Command {
    let wall_ms = seconds.parse::<u64>().expect("seconds are a number") * 1_000;
    let measured = Measured { pname: pname.to_owned(), system: "x86_64-linux".to_owned(), wall_ms, ..Measured::default() };
    Command::ImportDurations { durations: vec![measured], now }
}

fn options(words: &[&str]) -> Vec<(String, String)> {
    words.iter().filter_map(|word| word.split_once('=')).map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn option<'a>(options: &'a [(String, String)], key: &str) -> Option<&'a str> {
    options.iter().find(|(other, _)| other == key).map(|(_, value)| value.as_str())
}
