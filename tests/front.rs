// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The front door: how a command comes to its KVM, with a stand-in for images/with-kvm, and what `make install` installs.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use blk::{BlockDevice, DiskConfig};
use common::{Done, Running, rnic, run};
use image::Manifest;
use probe::ledger::Ledger;

const LIMIT: Duration = Duration::from_secs(60);

/// A folder with a stand-in for with-kvm that keeps its arguments, one a line, in `arguments` and then does `script`.
struct Stage(tempfile::TempDir);

impl Stage {
    fn new(script: &str) -> Self {
        let stage = Self(tempfile::tempdir().unwrap());
        let keep = format!("#!/bin/sh\ncd '{}'\nprintf '%s\\n' \"$@\" >arguments\n", stage.0.path().display());
        stage.program("with-kvm", &(keep + script));
        stage.program("agent", "");
        fs::write(stage.path("initramfs"), "of no machine").unwrap();
        fs::File::create(stage.path("disk.img")).unwrap().set_len(1 << 20).unwrap();
        stage
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().canonicalize().unwrap().join(name)
    }

    fn program(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// rnic with the stand-in.
    fn rnic(&self, words: &[&str]) -> Command {
        let mut command = Command::new(rnic());
        self.around(command.args(words));
        command
    }

    /// The environment: the stand-in, in no emulated host, and nothing forced.
    fn around(&self, command: &mut Command) {
        command.env("RNIC_WITH_KVM", self.path("with-kvm")).env("RNIC_AGENT", self.path("agent"));
        command
            .env_remove("RNIC_WITH_KVM_INSIDE")
            .env_remove("RNIC_KVM")
            .env_remove("RUST_LOG")
            .current_dir(self.0.path());
    }

    /// `rnic run` of a real kernel.
    fn boot(&self, words: &[&str]) -> Command {
        let manifest = Manifest::load().expect("these tests read real kernels: run images/prepare first");
        let kernel = manifest.dir.join(&manifest.kernel("6.1").unwrap().bzimage);
        let mut command = self.rnic(&["run", "--kernel", kernel.to_str().unwrap(), "--initramfs", "initramfs"]);
        command.args(words);
        command
    }

    fn lab(&self, words: &[&str]) -> Command {
        let mut command = self.rnic(&["lab", "--scenario", "H12", "--kernel", "6.1", "--host", "emulated"]);
        command.args(words).env("TMPDIR", self.0.path());
        command
    }

    /// The stand-in's arguments: before and after `--`.
    fn arguments(&self) -> (Vec<String>, Vec<String>) {
        let text = fs::read_to_string(self.path("arguments")).unwrap();
        let mut words = text.lines().map(str::to_owned);
        (words.by_ref().take_while(|word| word != "--").collect(), words.collect())
    }

    fn lives(&self) -> usize {
        fs::read_to_string(self.path("lives")).unwrap().lines().count()
    }
}

/// What follows `option` in `words`, each time.
fn values<'a>(words: &'a [String], option: &str) -> Vec<&'a str> {
    words.windows(2).filter(|pair| pair[0] == option).map(|pair| pair[1].as_str()).collect()
}

fn status(done: &Done) -> (i32, &str) {
    (done.code(), done.err.as_str())
}

#[test]
fn the_command_goes_on_in_an_emulated_host() {
    let stage = Stage::new("cat; exit 42");
    fs::create_dir(stage.path("logs")).unwrap();
    fs::write(stage.path("typed"), "a line").unwrap();
    let words = ["--host", "emulated", "--disk", "path=disk.img", "--serial", "file=logs/console", "--memory", "8G"];
    let typed = fs::File::open(stage.path("typed")).unwrap();
    let done = Running::start(stage.boot(&words).stdin(typed)).finish(LIMIT);
    assert_eq!((done.code(), done.out.as_str(), done.err.as_str()), (42, "a line", ""));
    let (before, after) = stage.arguments();
    assert_eq!(values(&before, "--emulated"), ["rnic: --host emulated"]);
    assert_eq!(
        values(&before, "--writable"),
        [stage.path("").to_str().unwrap().trim_end_matches('/'), stage.path("logs").to_str().unwrap()]
    );
    assert_eq!(values(&before, "--memory"), ["10240"]);
    assert_eq!(Path::new(&after[0]).canonicalize().unwrap(), rnic().canonicalize().unwrap());
    assert_eq!((after[1].as_str(), &after[after.len() - words.len()..]), ("run", &words.map(String::from)[..]));
}

/// What cannot work is said before minutes are spent, and nothing that is only read becomes writable.
#[test]
fn what_is_wrong_is_said_before_a_host_starts() {
    let stage = Stage::new("exit 42");
    for (words, word) in [
        (&["--memory", "64M"][..], "--memory size="),
        (&["--disk", "path=/nowhere/disk.img"], "/nowhere/disk.img"),
        (&["--serial", "file=/dev/shm/rnic-front-test"], "not to be seen"),
    ] {
        let done = run(stage.boot(&["--host", "emulated"]).args(words), LIMIT);
        assert!(done.code() == 1 && done.err.contains(word) && done.err.lines().count() == 1, "{done:?}");
        assert!(!stage.path("arguments").exists(), "{words:?}");
    }
    fs::remove_file("/dev/shm/rnic-front-test").unwrap();
    let done = run(&mut stage.boot(&["--host", "emulated", "--disk", "path=disk.img,readonly=on"]), LIMIT);
    assert_eq!(status(&done), (42, ""));
    assert!(values(&stage.arguments().0, "--writable").is_empty());
}

#[test]
fn without_a_helper_one_sentence_says_what_was_tried() {
    let stage = Stage::new("");
    let mut command = stage.boot(&["--host", "emulated"]);
    let done = run(command.env("RNIC_WITH_KVM", stage.path("nothing")), LIMIT);
    assert_eq!(done.code(), 1);
    assert!(done.err.contains("RNIC_WITH_KVM=") && done.err.lines().count() == 1, "{done:?}");
}

/// A machine without a KVM is no obstacle, one word says how; in an emulated host that is no way out.
#[test]
fn auto_takes_the_way_that_there_is() {
    let stage = Stage::new("exit 42");
    let words: Vec<String> = {
        let command = stage.boot(&[]);
        command.get_args().map(|word| format!("'{}'", word.to_str().unwrap())).collect()
    };
    // /dev/kvm is gone there, as root in a new mount namespace, otherwise in a user namespace too.
    let script = format!("mount -t tmpfs tmpfs /dev && exec '{}' {}", rnic().display(), words.join(" "));
    let machine = |inside: &str| {
        let mut command = Command::new("unshare");
        stage.around(command.args(["--mount", "--user", "--map-root-user", "sh", "-c", &script]));
        run(command.env("RNIC_WITH_KVM_INSIDE", inside), LIMIT)
    };
    let done = machine("");
    assert_eq!(status(&done), (42, ""));
    assert_eq!(values(&stage.arguments().0, "--emulated"), ["rnic: this machine has no /dev/kvm"]);
    fs::remove_file(stage.path("arguments")).unwrap();
    let done = machine("1");
    assert!(done.code() == 1 && done.err.contains("/dev/kvm does not exist"), "{done:?}");
    assert!(!stage.path("arguments").exists());
}

/// The locks that others on this machine see are held by the process that waits.
#[test]
fn a_disk_is_locked_while_an_emulated_host_has_it() {
    let stage = Stage::new("echo ready; exec sleep 60");
    let mut running = Running::start(&mut stage.boot(&["--host", "emulated", "--disk", "path=disk.img"]));
    running.wait_for("ready", LIMIT);
    let open = || BlockDevice::open(0, DiskConfig::new(stage.path("disk.img")), Ledger::new()).map(drop);
    assert!(open().unwrap_err().to_string().contains("in use"));
    running.signal("TERM");
    assert_eq!(running.finish(LIMIT).status.code(), Some(143));
    assert!(open().is_ok());
}

#[test]
fn signals_reach_it_and_its_answer_comes_back() {
    let stage = Stage::new("trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.1; done");
    let mut running = Running::start(&mut stage.boot(&["--host", "emulated"]));
    running.wait_for("ready", LIMIT);
    running.signal("TERM");
    let done = running.finish(LIMIT);
    assert_eq!((done.code(), done.out.as_str()), (5, "ready\ncaught\n"));
}

/// An emulated host that dies: the lab goes on where it stopped, as long as rows end, with one journal and one seed.
#[test]
fn the_lab_outlives_its_host() {
    let dies = "echo \"$@\" >>lives; journal=$(sed -n '/^--journal$/{n;p}' arguments); n=$(wc -l <lives)\n";
    // Lives 1 and 3 end a row.
    let stage = Stage::new(&format!("{dies} case $n in 1 | 3) echo row >>\"$journal\" ;; esac; exit 125"));
    let done = run(&mut stage.lab(&[]), LIMIT);
    assert_eq!((done.code(), stage.lives()), (125, 5), "{done:?}");
    let counts: Vec<&str> = done.err.lines().map(|line| line.split("(try ").nth(1).unwrap()).collect();
    assert_eq!(
        counts,
        [
            "1 of 3 without progress)",
            "2 of 3 without progress)",
            "1 of 3 without progress)",
            "2 of 3 without progress)",
            "3 of 3 without progress)"
        ]
    );
    let text = fs::read_to_string(stage.path("lives")).unwrap();
    let mut lives: Vec<&str> = text.lines().collect();
    lives.dedup();
    assert_eq!(lives.len(), 1, "the same words each time, seed and journal among them: {text}");
    let (before, after) = stage.arguments();
    assert_eq!((values(&after, "--seed").len(), values(&before, "--writable").len()), (1, 1));
    assert!(!Path::new(values(&after, "--journal")[0]).parent().unwrap().exists(), "its own journal is removed");
    // A journal and a seed of the user's own stay theirs; the third life ends well.
    let stage = Stage::new(&format!("{dies} [ $n = 3 ] && exit 2; exit 125"));
    let done = run(&mut stage.lab(&["--journal", "rows", "--seed", "7", "--json-file", "report.json"]), LIMIT);
    assert_eq!((done.code(), stage.lives()), (2, 3), "{done:?}");
    let (_, after) = stage.arguments();
    assert_eq!((values(&after, "--seed"), values(&after, "--journal")), (vec!["7"], vec!["rows"]));
    // Whatever else it ends with is its answer.
    let stage = Stage::new(&format!("{dies} exit 1"));
    assert_eq!((status(&run(&mut stage.lab(&[]), LIMIT)), stage.lives()), ((1, ""), 1));
}

/// Whatever form a report has, it comes out of the emulated host; an older one is only read there.
#[test]
fn reports_come_out_of_the_emulated_host() {
    let stage = Stage::new("exit 0");
    for folder in ["old", "pages", "ci"] {
        fs::create_dir(stage.path(folder)).unwrap();
    }
    fs::write(stage.path("old/report.json"), r#"{"rnic": "0", "host": "", "seed": 1, "rows": []}"#).unwrap();
    let words =
        ["--html", "pages/a.html", "--ktap", "ci/a.ktap", "--junit", "ci/a.xml", "--compare", "old/report.json"];
    assert_eq!(run(&mut stage.lab(&words), LIMIT).code(), 0);
    let (before, after) = stage.arguments();
    let writable = values(&before, "--writable");
    for (folder, is) in [("pages", true), ("ci", true), ("old", false)] {
        assert_eq!(writable.contains(&stage.path(folder).to_str().unwrap()), is, "{folder}: {writable:?}");
    }
    assert_eq!(values(&after, "--html"), ["pages/a.html"]);
}

/// A host for each job, with a part of the rows and a journal of its own. What they leave is the last host's, which has all rows that have ended
/// and writes what is to be written.
#[test]
fn each_job_has_an_emulated_host_of_its_own() {
    let stage = Stage::new(
        "echo \"$*\" >>all
        for word; do
            case $last in --journal) journal=$word ;; --part) part=$word ;; esac
            last=$word
        done
        [ -z \"$part\" ] && { grep -c scenario \"$journal\" >kept; exit 42; }
        cat row >>\"$journal\"
        [ $part = 1/2 ] || exit 9",
    );
    fs::create_dir(stage.path("pages")).unwrap();
    let sample: serde_json::Value = serde_json::from_str(include_str!("report/sample.json")).unwrap();
    fs::write(stage.path("row"), format!("{}\n", sample["rows"][0])).unwrap();
    let words = ["--journal", "mine", "--html", "pages/a.html", "--seed", "7", "--jobs", "2"];
    let done = run(&mut stage.lab(&words), LIMIT);
    assert_eq!(done.code(), 42, "the last host's: {done:?}");
    assert!(done.err.contains("job 2/2 ended early (exit status 9)") && done.err.lines().count() == 1, "{done:?}");
    assert_eq!(done.out.lines().filter(|line| line.starts_with("H12")).count(), 2, "rows are shown: {done:?}");
    assert_eq!(fs::read_to_string(stage.path("kept")).unwrap().trim(), "2");
    let all = fs::read_to_string(stage.path("all")).unwrap();
    let mut hosts: Vec<Vec<String>> = all.lines().map(|line| line.split(' ').map(str::to_owned).collect()).collect();
    let last = hosts.pop().unwrap();
    assert!(values(&last, "--part").is_empty() && values(&last, "--journal") == ["mine"], "{last:?}");
    hosts.sort_by_key(|words| values(words, "--part")[0].to_owned());
    assert_eq!(hosts.iter().map(|words| values(words, "--part")).collect::<Vec<_>>(), [["1/2"], ["2/2"]]);
    for words in hosts.iter().chain([&last]) {
        assert_eq!(values(words, "--jobs"), ["2", "1"], "the last one counts");
        let pages = values(words, "--writable").contains(&stage.path("pages").to_str().unwrap());
        assert_eq!(pages, values(words, "--part").is_empty(), "{words:?}");
    }
    let journals: Vec<_> = hosts.iter().map(|words| values(words, "--journal")[1]).collect();
    assert!(journals[0] != journals[1] && journals.iter().all(|path| !Path::new(path).exists()), "{journals:?}");
}

/// What a campaign needs in there: its plan, the same seeds, the part that variables out here say, and memory for its guests.
#[test]
fn a_campaign_goes_on_in_an_emulated_host() {
    let stage = Stage::new("exit 42");
    let plan = "[[inject]]\ndevice = 'disk1'\naction = 'io-error'\nnth = [1, 3]\n";
    fs::write(stage.path("plan.toml"), plan).unwrap();
    let campaign = |words: &[&str]| {
        let mut command = stage.lab(words);
        command.env("SLURM_ARRAY_TASK_ID", "2").env("SLURM_ARRAY_TASK_COUNT", "3").env("SLURM_ARRAY_TASK_MIN", "1");
        assert_eq!(status(&run(command.env_remove("SLURM_ARRAY_TASK_STEP"), LIMIT)), (42, ""), "{words:?}");
        stage.arguments()
    };
    let (before, after) =
        campaign(&["--faults", "plan.toml", "--seeds", "1..9", "--shard", "auto", "--memory", "4608M"]);
    assert_eq!((values(&after, "--shard"), values(&after, "--seed").len()), (vec!["auto", "2/3"], 0));
    assert_eq!((values(&before, "--memory"), values(&after, "--faults")), (vec!["7168"], vec!["plan.toml"]));
    let (before, after) = campaign(&["--faults", "plan.toml", "--repeat", "2"]);
    assert_eq!(
        (values(&after, "--seed").len(), values(&after, "--shard").len(), values(&before, "--memory").len()),
        (1, 0, 0)
    );
    // A file that is not to be seen in there.
    let hidden = "/dev/shm/rnic-front-test-plan.toml";
    fs::write(hidden, plan).unwrap();
    let done = run(&mut stage.lab(&["--faults", hidden, "--seed", "1"]), LIMIT);
    fs::remove_file(hidden).unwrap();
    assert!(done.code() == 1 && done.err.contains("not to be seen"), "{done:?}");
}

/// `make TARGET` with everything below `root`, of this program and stand-ins for what is not built here.
fn make(target: &str, stage: &Stage) -> Done {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().find(|dir| dir.join("Makefile").is_file()).unwrap();
    let mut command = Command::new("make");
    command.arg(target).arg("PREFIX=/usr").arg(format!("DESTDIR={}", stage.path("root").display()));
    command.arg(format!("PROGRAM={}", rnic().canonicalize().unwrap().display()));
    command.arg(format!("AGENTS={}", stage.path("agents").display()));
    run(command.current_dir(tree).env_remove("MAKEFLAGS").env_remove("MAKELEVEL"), LIMIT)
}

fn files(root: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(root) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn an_installed_program_finds_its_parts() {
    let stage = Stage::new("");
    let done = make("install", &stage);
    assert!(!done.status.success() && done.err.contains("make build"), "without an agent: {done:?}");
    fs::create_dir(stage.path("agents")).unwrap();
    fs::write(stage.path("agents/rnic-agent"), "the agent").unwrap();
    let done = make("install", &stage);
    assert!(done.status.success(), "{done:?}");

    let usr = stage.path("root/usr");
    let program = usr.join("bin/rnic");
    let installed = |words: &[&str]| {
        let mut command = Command::new(&program);
        command
            .args(words)
            .current_dir("/")
            .env_remove("RNIC_WITH_KVM")
            .env_remove("RNIC_AGENT")
            .env_remove("RNIC_PREPARE");
        command.env_remove("RNIC_WITH_KVM_INSIDE").env("RUST_LOG", "warn");
        run(&mut command, LIMIT)
    };
    let version = installed(&["--version"]);
    assert_eq!((version.code(), version.out.as_str()), (0, concat!("rnic ", env!("CARGO_PKG_VERSION"), "\n")));
    assert!(installed(&["lab", "--list"]).out.contains("H12"));
    // The real helpers, which find their own parts in turn.
    let prepare = installed(&["prepare", "--help"]);
    assert!(prepare.code() == 0 && prepare.out.contains("bookworm"), "{prepare:?}");
    let help = run(Command::new(usr.join("share/rnic/images/with-kvm")).arg("--help"), LIMIT);
    assert!(help.code() == 0 && help.out.contains("--writable"), "{help:?}");
    // Then one that says what it is asked to do.
    fs::write(usr.join("share/rnic/images/with-kvm"), "#!/bin/sh\necho \"$@\"\n").unwrap();
    let done = installed(&["lab", "--scenario", "H12", "--kernel", "6.1", "--host", "emulated"]);
    assert!(done.code() == 0 && done.out.contains(program.to_str().unwrap()), "{done:?}");
    fs::remove_file(usr.join("share/rnic/rnic-agent")).unwrap();
    let share = program.parent().unwrap().join("../share/rnic/rnic-agent");
    let done = installed(&["lab", "--scenario", "H12", "--kernel", "6.1", "--host", "emulated"]);
    assert!(done.code() == 1 && done.err.contains(share.to_str().unwrap()), "{done:?}");

    let text = |name: &str| fs::read_to_string(usr.join("share").join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert!(text("man/man1/rnic.1").contains(".TH rnic 1") && text("man/man1/rnic-run.1").contains("kernel"));
    for script in
        ["bash-completion/completions/rnic", "zsh/site-functions/_rnic", "fish/vendor_completions.d/rnic.fish"]
    {
        assert!(text(script).contains("kvm-probe") && text(script).contains("emulated"), "{script}");
    }
    assert!(text("doc/rnic/LICENSE-APACHE").contains("Apache"));

    assert!(make("uninstall", &stage).status.success());
    assert_eq!(files(&stage.path("root")), Vec::<PathBuf>::new());
}

/// A stand-in for the machine in there: at the emulated host's socket, it says what it was asked, and ends the host when told to.
const INSIDE: &str = r#"
while [ $# -gt 0 ] && [ "$1" != --socket ]; do shift; done
exec python3 -c '
import json, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
stream = listener.accept()[0].makefile("rw")
for line in stream:
    asked = json.loads(line)
    stream.write(json.dumps({"id": asked["id"], "ok": {"inside": asked}}) + "\n")
    stream.flush()
    if asked["order"] == "power-off":
        sys.exit(7)
' "$2"
"#;

#[test]
fn the_control_socket_of_a_machine_in_an_emulated_host_is_out_here() {
    let stage = Stage::new(INSIDE);
    let words = ["--host", "emulated", "--control", "s"];
    let outer = Running::start(stage.boot(&words).stdin(Stdio::null()));
    let began = Instant::now();
    while !stage.path("s").exists() {
        assert!(began.elapsed() < LIMIT);
        std::thread::sleep(Duration::from_millis(10));
    }
    let give = |words: &[&str]| run(stage.rnic(&["ctl", "s"]).args(words), LIMIT);
    let ask = |words: &[&str]| -> serde_json::Value {
        let done = give(words);
        assert_eq!(status(&done), (0, ""), "{words:?}");
        serde_json::from_str(&done.out).unwrap()
    };
    assert_eq!(ask(&["ping"])["inside"]["order"], "ping");
    let port = ask(&["port", "1", "down"]);
    assert_eq!((&port["inside"]["nic"], &port["inside"]["state"]), (&1.into(), &"down".into()));
    let second = run(&mut stage.boot(&words), LIMIT);
    assert!(second.code() == 1 && second.err.contains("in use by another program"), "{second:?}");
    let (before, after) = stage.arguments();
    assert_eq!(values(&after, "--control-port"), ["/dev/vport0p5"]);
    let folder = Path::new(values(&before, "--socket")[0]).parent().unwrap().to_owned();
    assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    ask(&["power-off"]);
    assert_eq!(outer.finish(LIMIT).code(), 7);
    assert!(!stage.path("s").exists() && !folder.exists());
}
