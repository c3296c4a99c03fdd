//! `kiln drv`: derivations, for people and tests. Reads files, `.drv` or JSON; needs no farm and no store.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use kiln_nix::derivation::{self, Derivation, path_of_parsed};
use kiln_nix::modulo::Modulo;
use kiln_wire::{DrvPath, OutputName, StoreDir, StorePath};

use crate::words;

/// What to do with derivations.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Print derivations as `nix show-derivation` does
    Show(ShowArgs),
    /// Recompute output paths from content; exit 1 if one differs from what its file says
    Outputs(OutputsArgs),
}

/// Which derivations to show.
#[derive(clap::Args)]
pub struct ShowArgs {
    /// The .drv files, or files with derivations as `nix derivation show` prints them
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The store that the files are of
    #[arg(long, env = "NIX_STORE_DIR", default_value = "/nix/store", value_name = "DIR")]
    store_dir: String,
}

/// Which derivations to check.
#[derive(clap::Args)]
pub struct OutputsArgs {
    /// The .drv files, or files with derivations as `nix derivation show` prints them
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Where input derivations are, if not beside each file
    #[arg(long, value_name = "DIR")]
    inputs: Option<PathBuf>,
    /// The store that the files are of
    #[arg(long, env = "NIX_STORE_DIR", default_value = "/nix/store", value_name = "DIR")]
    store_dir: String,
}

/// Runs the command.
///
/// # Errors
/// Names the file and what is wrong with it; such errors exit with 2.
pub fn run(command: Command) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    match command {
        Command::Show(args) => show(&args, &mut out),
        Command::Outputs(args) => outputs(&args, &mut out),
    }
}

fn show(args: &ShowArgs, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let store_dir = store_dir(&args.store_dir)?;
    // Nix prints them in order of path.
    let mut derivations = BTreeMap::new();
    for file in &args.files {
        derivations.extend(File::read_all(&store_dir, file)?.into_iter().map(|read| (read.path, read.derivation)));
    }
    let derivations: Vec<_> = derivations.into_iter().collect();
    writeln!(out, "{}", derivation::show(&store_dir, &derivations)).context("print the derivations")?;
    Ok(ExitCode::SUCCESS)
}

fn outputs(args: &OutputsArgs, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let store_dir = store_dir(&args.store_dir)?;
    let mut check = Check { modulo: Modulo::new(store_dir.clone()), store_dir, shown: BTreeMap::new(), wrong: Vec::new() };
    let mut report: BTreeMap<String, BTreeMap<OutputName, Option<String>>> = BTreeMap::new();
    for file in &args.files {
        let beside = file.parent().map_or(PathBuf::from("."), Path::to_owned);
        let all = File::read_all(&check.store_dir, file)?;
        check.shown = all.iter().map(|read| (read.path.clone(), read.derivation.clone())).collect();
        for read in &all {
            let outputs = check.outputs(read, args.inputs.as_deref().unwrap_or(&beside))?;
            let full = |path: StorePath| check.store_dir.join(&path);
            report.insert(full(read.path.as_path().clone()), outputs.into_iter().map(|(name, path)| (name, path.map(full))).collect());
        }
    }
    serde_json::to_writer_pretty(&mut *out, &report).context("print the output paths")?;
    writeln!(out).context("print the output paths")?;
    check.wrong.sort();
    check.wrong.dedup();
    check.wrong.iter().for_each(|wrong| eprintln!("error: {wrong}"));
    Ok(if check.wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(words::FAILED) })
}

fn store_dir(text: &str) -> anyhow::Result<StoreDir> {
    StoreDir::parse(text).map_err(words::bad_input)
}

/// One derivation of a file.
struct File {
    path: DrvPath,
    /// Where its content says that it belongs.
    computed: DrvPath,
    derivation: Derivation,
}

impl File {
    /// Reads a .drv file, or all derivations of a JSON file.
    fn read_all(store_dir: &StoreDir, file: &Path) -> anyhow::Result<Vec<Self>> {
        let refuse = |rule: String| words::bad_input(format!("read `{}`: {rule}", file.display()));
        let bytes = std::fs::read(file).map_err(|err| refuse(format!("{err}; name a .drv file")))?;
        // No .drv file begins so.
        if !bytes.trim_ascii_start().starts_with(b"{") {
            return Ok(vec![Self::parse(store_dir, file, &bytes)?]);
        }
        let shown = derivation::read_shown(store_dir, &bytes).map_err(|err| refuse(format!("{:#}", anyhow::Error::from(err))))?;
        Ok(shown.into_iter().map(|one| Self { computed: one.path.clone(), path: one.path, derivation: one.derivation }).collect())
    }

    /// Reads a .drv file.
    fn read(store_dir: &StoreDir, file: &Path) -> anyhow::Result<Self> {
        let bytes = std::fs::read(file).map_err(|err| words::bad_input(format!("read `{}`: {err}; name a .drv file", file.display())))?;
        Self::parse(store_dir, file, &bytes)
    }

    /// A file that is named as in a store counts as what it is named; any other by its content.
    fn parse(store_dir: &StoreDir, file: &Path, bytes: &[u8]) -> anyhow::Result<Self> {
        let file_name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let stated = DrvPath::parse(&file_name).ok();
        let name = stated.as_ref().map_or(file_name.strip_suffix(".drv").unwrap_or(&file_name), DrvPath::name);
        let refuse = |err| words::bad_input(format!("read `{}`: {err}", file.display()));
        let derivation = Derivation::parse(store_dir, name, bytes).map_err(refuse)?;
        let computed = path_of_parsed(store_dir, &derivation, bytes).map_err(refuse)?;
        Ok(Self { path: stated.unwrap_or_else(|| computed.clone()), computed, derivation })
    }
}

/// Recomputes outputs, each derivation once.
struct Check {
    store_dir: StoreDir,
    modulo: Modulo,
    /// Derivations of the file that is being checked, for which none is looked for.
    shown: BTreeMap<DrvPath, Derivation>,
    wrong: Vec<String>,
}

impl Check {
    /// Returns the output paths that follow from the content of `root` and of its inputs, which are looked for in `directory`.
    fn outputs(&mut self, root: &File, directory: &Path) -> anyhow::Result<BTreeMap<OutputName, Option<StorePath>>> {
        let mut open: Vec<File> = Vec::new();
        let mut next = self.first_unknown(&root.derivation);
        loop {
            match next {
                Some(input) => {
                    if input == root.path || open.iter().any(|file| file.path == input) {
                        return Err(words::bad_input(format!("check `{}`: it needs itself through `{input}`", root.path)));
                    }
                    open.push(self.input(&input, directory).with_context(|| {
                        format!("find input `{input}` of `{}`; say with --inputs where input derivations are", root.path)
                    })?);
                }
                None => match open.pop() {
                    Some(file) => self.check(&file).map(|_| ())?,
                    None => return self.check(root),
                },
            }
            next = self.first_unknown(&open.last().unwrap_or(root).derivation);
        }
    }

    fn input(&self, input: &DrvPath, directory: &Path) -> anyhow::Result<File> {
        match self.shown.get(input) {
            Some(shown) => Ok(File { path: input.clone(), computed: input.clone(), derivation: shown.clone() }),
            None => File::read(&self.store_dir, &directory.join(input.as_str())),
        }
    }

    fn first_unknown(&self, derivation: &Derivation) -> Option<DrvPath> {
        // What has a fixed output counts by that alone, whatever its inputs are.
        let mut inputs = derivation.inputs.keys().filter(|_| !derivation.is_fixed_output());
        inputs.find(|input| self.modulo.get(input).is_none()).cloned()
    }

    fn check(&mut self, file: &File) -> anyhow::Result<BTreeMap<OutputName, Option<StorePath>>> {
        if file.path != file.computed {
            self.wrong.push(format!("check derivation `{}`: its content belongs at `{}`", file.path, file.computed));
        }
        let wrong = self.modulo.check_outputs(&file.path, &file.derivation).map_err(words::bad_input)?;
        self.wrong.extend(wrong.iter().map(ToString::to_string));
        Ok(self.modulo.add(&file.path, &file.derivation).map_err(words::bad_input)?.outputs)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    // As Nix 2.8 wrote them.
    pub const TOP_NAME: &str = "8yz2dwppw3fyp48y376nx8ajafis1903-top.drv";
    const TOP: &str = concat!(
        r#"Derive([("out","/nix/store/imzhqwxckn6dvd7rs0h88xzja4k1p5h1-top","","")],"#,
        r#"[("/nix/store/rjgigrd97wi3zhvywngl8bxjj57arfqp-dep.drv",["dev"]),("/nix/store/wbi4qn56q29vakdhfa07l3zka2v8ysj3-fod.drv",["out"])],"#,
        r#"[],"#,
        r#""x86_64-linux","/bin/sh",["-c","x"],"#,
        r#"[("builder","/bin/sh"),("d","/nix/store/jqq7bpj588d1maf4vcv76vdjwkvzl0ik-dep-dev"),("fod","/nix/store/4yfk9q43irhw1r79i1pvbva1zd0677j1-fod"),("name","top"),("out","/nix/store/imzhqwxckn6dvd7rs0h88xzja4k1p5h1-top"),("system","x86_64-linux")])"#
    );
    const DEP_NAME: &str = "rjgigrd97wi3zhvywngl8bxjj57arfqp-dep.drv";
    const DEP: &str = concat!(
        r#"Derive([("dev","/nix/store/jqq7bpj588d1maf4vcv76vdjwkvzl0ik-dep-dev","",""),("out","/nix/store/ibv3fk8vn7h6wzv0miyzyg07bsvfn3hg-dep","","")],"#,
        r#"[],"#,
        r#"[],"#,
        r#""x86_64-linux","/bin/sh",["-c","echo hi > $out"],"#,
        r#"[("builder","/bin/sh"),("dev","/nix/store/jqq7bpj588d1maf4vcv76vdjwkvzl0ik-dep-dev"),("name","dep"),("out","/nix/store/ibv3fk8vn7h6wzv0miyzyg07bsvfn3hg-dep"),("outputs","out dev"),("system","x86_64-linux")])"#
    );
    const FOD_NAME: &str = "wbi4qn56q29vakdhfa07l3zka2v8ysj3-fod.drv";
    const FOD: &str = concat!(
        r#"Derive([("out","/nix/store/4yfk9q43irhw1r79i1pvbva1zd0677j1-fod","sha256","e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")],"#,
        r#"[("/nix/store/rjgigrd97wi3zhvywngl8bxjj57arfqp-dep.drv",["dev"])],"#,
        r#"[],"#,
        r#""x86_64-linux","/bin/sh",["/nix/store/jqq7bpj588d1maf4vcv76vdjwkvzl0ik-dep-dev"],"#,
        r#"[("builder","/bin/sh"),("name","fod"),("out","/nix/store/4yfk9q43irhw1r79i1pvbva1zd0677j1-fod"),("outputHash","sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="),("outputHashAlgo","sha256"),("outputHashMode","flat"),("system","x86_64-linux")])"#
    );

    fn checked(directory: &Path, names: &[&str], inputs: Option<&Path>) -> (anyhow::Result<ExitCode>, String) {
        let files = names.iter().map(|name| directory.join(name)).collect();
        let args = OutputsArgs { files, inputs: inputs.map(Path::to_owned), store_dir: "/nix/store".to_owned() };
        let mut out = Vec::new();
        let code = outputs(&args, &mut out);
        (code, String::from_utf8(out).expect("JSON is UTF-8"))
    }

    fn is(code: &anyhow::Result<ExitCode>, want: u8) -> bool {
        let code = code.as_ref().map_or_else(words::exit_code_of, |code| *code);
        code == ExitCode::from(want)
    }

    /// The three as JSON.
    pub fn shown() -> String {
        let store = store();
        let args = ShowArgs {
            files: [TOP_NAME, DEP_NAME, FOD_NAME].map(|name| store.path().join(name)).into(),
            store_dir: "/nix/store".to_owned(),
        };
        let mut out = Vec::new();
        show(&args, &mut out).expect("shows");
        String::from_utf8(out).expect("JSON is UTF-8")
    }

    fn store() -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for (name, text) in [(TOP_NAME, TOP), (DEP_NAME, DEP), (FOD_NAME, FOD)] {
            std::fs::write(directory.path().join(name), text).expect("a file");
        }
        directory
    }

    #[test]
    fn outputs_are_recomputed_from_the_file_and_its_inputs() {
        let store = store();
        let (code, json) = checked(store.path(), &[TOP_NAME, DEP_NAME], None);
        assert!(is(&code, 0), "{code:?}");
        let report: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        let want = serde_json::json!({
            "/nix/store/8yz2dwppw3fyp48y376nx8ajafis1903-top.drv": { "out": "/nix/store/imzhqwxckn6dvd7rs0h88xzja4k1p5h1-top" },
            "/nix/store/rjgigrd97wi3zhvywngl8bxjj57arfqp-dep.drv": {
                "dev": "/nix/store/jqq7bpj588d1maf4vcv76vdjwkvzl0ik-dep-dev",
                "out": "/nix/store/ibv3fk8vn7h6wzv0miyzyg07bsvfn3hg-dep",
            },
        });
        assert_eq!(report, want);
    }

    #[test]
    fn a_changed_recipe_or_input_is_told_by_exit_1_and_the_right_path() {
        for changed in [TOP_NAME, DEP_NAME] {
            let store = store();
            let file = store.path().join(changed);
            let text = std::fs::read_to_string(&file).expect("a file").replace("/bin/sh\",", "/bin/false\",");
            std::fs::write(&file, text).expect("a file");
            let (code, json) = checked(store.path(), &[TOP_NAME], None);
            assert!(is(&code, 1), "{changed}: {code:?}");
            assert!(json.contains("-top\"") && !json.contains("imzhqwxckn6dvd7rs0h88xzja4k1p5h1"), "{changed}: {json}");
        }
    }

    #[test]
    fn a_missing_input_is_named_unless_the_output_is_fixed() {
        let store = store();
        let elsewhere = tempfile::tempdir().expect("a temporary directory");
        std::fs::copy(store.path().join(TOP_NAME), elsewhere.path().join(TOP_NAME)).expect("a copy");
        std::fs::copy(store.path().join(FOD_NAME), elsewhere.path().join(FOD_NAME)).expect("a copy");
        assert!(is(&checked(elsewhere.path(), &[FOD_NAME], None).0, 0));
        assert!(is(&checked(elsewhere.path(), &[TOP_NAME], Some(store.path())).0, 0));
        let (code, json) = checked(elsewhere.path(), &[TOP_NAME], None);
        assert!(is(&code, 2) && json.is_empty(), "{code:?}");
        let message = format!("{:#}", code.expect_err("an input is missing"));
        assert!(message.contains(DEP_NAME) && message.contains("--inputs"), "{message}");
    }

    #[test]
    fn what_is_no_derivation_is_refused_with_its_file() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(directory.path().join("bad.drv"), "Derive([(\"out").expect("a file");
        for name in ["bad.drv", "gone.drv"] {
            let args = ShowArgs { files: vec![directory.path().join(name)], store_dir: "/nix/store".to_owned() };
            let code = show(&args, &mut Vec::new());
            assert!(is(&code, 2), "{code:?}");
            assert!(format!("{:#}", code.expect_err(name)).contains(name));
        }
    }

    #[test]
    fn a_derivation_is_shown_under_its_path_wherever_its_file_is() {
        let store = store();
        std::fs::write(store.path().join("top.drv"), TOP).expect("a file");
        let shown = ["top.drv", TOP_NAME].map(|name| {
            let mut out = Vec::new();
            let args = ShowArgs { files: vec![store.path().join(name)], store_dir: "/nix/store".to_owned() };
            assert!(is(&show(&args, &mut out), 0));
            String::from_utf8(out).expect("JSON is UTF-8")
        });
        assert_eq!(shown[0], shown[1]);
        assert!(shown[0].starts_with(&format!("{{\n  \"/nix/store/{TOP_NAME}\": {{\n    \"outputs\": {{\n      \"out\": {{\n")));
    }

    #[test]
    fn derivations_as_json_are_taken_where_files_are() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(directory.path().join("shown.json"), shown()).expect("a file");
        let mut out = Vec::new();
        let args = ShowArgs { files: vec![directory.path().join("shown.json")], store_dir: "/nix/store".to_owned() };
        assert!(is(&super::show(&args, &mut out), 0));
        assert_eq!(String::from_utf8(out).expect("JSON is UTF-8"), shown());
        let (code, json) = checked(directory.path(), &["shown.json"], None);
        assert!(is(&code, 0), "{code:?}");
        let report: BTreeMap<String, serde_json::Value> = serde_json::from_str(&json).expect("JSON");
        assert_eq!(report.len(), 3, "inputs are found beside each other: {json}");
        std::fs::write(directory.path().join("changed.json"), shown().replace("/bin/sh", "/bin/false")).expect("a file");
        let (code, _) = checked(directory.path(), &["changed.json"], None);
        assert!(is(&code, 2), "{code:?}");
        assert!(format!("{:#}", code.expect_err("changed")).contains("its content belongs at"));
    }
}
