// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line where no guest is needed: help that a person can read, and bad input. Every refusal is one sentence that
//! names the thing and the remedy, has an exit status other than 0, and leaves nothing behind.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use blk::{BlockDevice, DiskConfig};
use common::{Done, rnic, run};
use image::Manifest;
use probe::ledger::Ledger;

const LIMIT: Duration = Duration::from_secs(60);
/// Widest line of any help.
const HELP_WIDTH: usize = 110;

/// A place of its own for each test: `files` for its input, `tmp` and `cwd` to see what is left behind.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["files", "tmp", "cwd"] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(0o777)).unwrap();
        }
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("files").join(name)
    }

    /// A file of the input, as a word for the command line.
    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// A sparse file of `size` bytes.
    fn disk(&self, name: &str, size: u64) -> String {
        let path = self.path(name);
        File::create(&path).unwrap().set_len(size).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env("TMPDIR", self.dir.path().join("tmp"))
            .current_dir(self.dir.path().join("cwd"))
            .env_remove("RUST_LOG");
        command
    }

    /// Nothing new anywhere.
    fn assert_clean(&self) {
        for name in ["tmp", "cwd"] {
            let left: Vec<_> = fs::read_dir(self.dir.path().join(name)).unwrap().map(|e| e.unwrap().path()).collect();
            assert!(left.is_empty(), "left behind: {left:?}");
        }
    }

    /// Runs rnic and checks that it refuses in one sentence with all of `words` in it.
    fn refuses(&self, args: &[&str], words: &[&str]) {
        let done = run(self.command(rnic()).args(args), LIMIT);
        assert_refusal(&done, args, words);
        self.assert_clean();
    }
}

fn assert_refusal(done: &Done, args: &[&str], words: &[&str]) {
    assert_ne!(done.code(), 0, "{args:?}: {done:?}");
    assert_eq!(done.out, "", "{args:?}: {done:?}");
    // What is wrong with an option's value, clap follows with a pointer to --help.
    let pointer = "\n\nFor more information, try '--help'.\n";
    let sentence = done.err.strip_suffix(pointer).unwrap_or(&done.err).trim_end_matches('\n');
    assert!(
        !sentence.contains('\n') && (20..400).contains(&sentence.len()),
        "{args:?}: not one sentence: {}",
        done.err
    );
    for word in words {
        assert!(sentence.contains(word), "{args:?}: {word:?} is not in: {sentence}");
    }
    assert!(!sentence.contains("os error 2)\n") && !sentence.contains("panicked"), "{args:?}: {sentence}");
}

fn manifest() -> Manifest {
    Manifest::load().expect("these tests read real kernels: run images/prepare first")
}

fn bzimage(name: &str) -> PathBuf {
    let manifest = manifest();
    manifest.dir.join(&manifest.kernel(name).unwrap().bzimage)
}

#[test]
fn kernels_that_are_none() {
    let place = Place::new();
    let whole = fs::read(bzimage("6.1")).unwrap();
    let truncated = place.file("truncated", &whole[..1 << 20]);
    let script = place.file("script", "#!/bin/sh\necho this is no kernel\n");
    let empty = place.file("empty", "");
    let mut bytes = whole;
    let middle = bytes.len() / 2;
    bytes[middle..middle + 4096].fill(0x5a);
    let damaged = place.file("damaged", bytes);
    let dir = place.dir.path().to_str().unwrap();
    for (kernel, words) in [
        ("/nowhere/bzImage", &["/nowhere/bzImage", "No such file"][..]),
        (&truncated, &[&truncated, "truncated"]),
        (&script, &[&script, "neither an ELF vmlinux nor a bzImage"]),
        (&empty, &[&empty, "neither an ELF vmlinux nor a bzImage"]),
        (&damaged, &[&damaged, "damaged"]),
        (dir, &[dir, "cannot be read"]),
        ("5.4", &["5.4", "6.1, 6.12, 7.3", "rnic prepare", "path"]),
    ] {
        place.refuses(&["run", "--kernel", kernel, "--exec", "true"], words);
    }
    place.refuses(&["run"], &["--kernel"]);
    place.refuses(&["lab", "--kernel", "5.4"], &["5.4", "rnic prepare"]);
    place.refuses(&["lab", "--kernel", &truncated], &[&truncated, "truncated"]);
}

#[test]
fn an_elf_file_cut_short_is_no_kernel() {
    let place = Place::new();
    let manifest = manifest();
    let bytes = fs::read(manifest.dir.join(&manifest.kernel("6.1").unwrap().vmlinux)).unwrap();
    let truncated = place.file("vmlinux", &bytes[..1 << 20]);
    place.refuses(&["run", "--kernel", &truncated, "--exec", "true"], &[&truncated]);
}

#[test]
fn modules_that_are_not_there() {
    let place = Place::new();
    let kernel = bzimage("7.3");
    let kernel = kernel.to_str().unwrap();
    let empty = place.dir.path().join("cwd");
    let empty = empty.to_str().unwrap();
    for dir in ["/nowhere/modules", empty] {
        place.refuses(&["run", "--kernel", kernel, "--modules", dir], &[dir, "modules.dep", "depmod"]);
    }
}

#[test]
fn an_empty_image_cache() {
    let place = Place::new();
    let mut command = place.command(rnic());
    command.env("RNIC_CACHE", place.path("nothing")).args(["run", "--kernel", "6.1"]);
    let done = run(&mut command, LIMIT);
    assert_refusal(&done, &["run"], &["nothing", "rnic prepare"]);
    place.assert_clean();
}

#[test]
fn disks_that_cannot_be_used() {
    let place = Place::new();
    let odd = place.disk("odd", 1000);
    let empty = place.disk("empty", 0);
    let dir = place.dir.path().to_str().unwrap().to_owned();
    let good = place.disk("good", 1 << 20);
    for (disk, words) in [
        ("path=/nowhere/disk.img".to_owned(), &["/nowhere/disk.img", "does not exist", "give the path"][..]),
        (format!("path={odd}"), &[&odd, "1000 bytes", "truncate"]),
        (format!("path={empty}"), &[&empty, "empty", "truncate"]),
        (format!("path={dir}"), &[&dir, "neither a file nor a block device"]),
        (format!("path={good},queues=9"), &["1 to 8 queues", "9"]),
        (format!("path={good},serial=123456789012345678901"), &["20 bytes", "shorten"]),
        (format!("path={good},colour=red"), &["colour=red", "readonly="]),
        (format!("path={good},readonly=maybe"), &["maybe", "on nor off"]),
        ("readonly=on".to_owned(), &["path="]),
    ] {
        place.refuses(&["run", "--kernel", "6.1", "--disk", &disk, "--exec", "true"], words);
    }
}

#[test]
fn persistent_memory_that_cannot_be() {
    let place = Place::new();
    let (good, odd, empty) = (place.disk("good", 4 << 20), place.disk("odd", (2 << 20) + 512), place.disk("empty", 0));
    for (pmem, words) in [
        ("".to_owned(), &["size=SIZE", "path=FILE"][..]),
        ("256M".to_owned(), &["size=SIZE"]),
        ("size=3M".to_owned(), &["multiple of 2 MiB", "4194304"]),
        ("size=0".to_owned(), &["multiple of 2 MiB", "2097152"]),
        ("size=65G".to_owned(), &["65 GiB", "at most 64 GiB"]),
        ("size=32G".to_owned(), &["persistent memory of 32768 MiB", "--memory size="]),
        ("path=/nowhere/m.img".to_owned(), &["/nowhere/m.img", "size="]),
        ("path=/".to_owned(), &["regular file"]),
        ("path=/dev/zero,size=4M".to_owned(), &["/dev/zero", "regular file"]),
        (format!("path={odd}"), &[odd.as_str(), "multiple of 2 MiB"]),
        (format!("path={empty}"), &[empty.as_str(), "multiple of 2 MiB"]),
        (format!("path={good},size=8M"), &[good.as_str(), "has 4 MiB, not 8 MiB"]),
    ] {
        let options = ["run", "--kernel", "6.1", "--memory", "300M", "--exec", "true"];
        place.refuses(&[&options[..], &["--pmem", &pmem]].concat(), words);
    }
    let option = format!("path={good}");
    let twice = ["run", "--kernel", "6.1", "--exec", "true", "--pmem", &option, "--pmem", &option];
    place.refuses(&twice, &[&good, "in use", "twice"]);
    let disk_too = ["run", "--kernel", "6.1", "--exec", "true", "--pmem", &option, "--disk", &option];
    place.refuses(&disk_too, &[&good, "in use"]);
    let often = ["--pmem", "size=2M"].repeat(5);
    place.refuses(&[&["run", "--kernel", "6.1", "--exec", "true"], &often[..]].concat(), &["5 times", "at most 4"]);
}

#[test]
fn nics_that_cannot_be() {
    let place = Place::new();
    for (nic, words) in [
        ("speed=fast", &["speed", "use odp="][..]),
        ("odp=maybe", &["maybe", "neither on nor off"]),
        ("model=cx7", &["cx7", "model=cx5vf", "model=cx5 "]),
        ("log=everything", &["everything", "log=commands"]),
        ("engines=0", &["engines=0", "1 to 16"]),
        ("odp=on,,", &["use odp="]),
    ] {
        place.refuses(&["run", "--kernel", "6.1", "--exec", "true", &format!("--nic={nic}")], words);
        place.refuses(&["run", "--kernel", "6.1", "--nic", nic, "--exec", "true"], words);
    }
    // Without a value the option takes none of its neighbours.
    place.refuses(&["run", "--nic", "--kernel", "/nowhere/bzImage"], &["/nowhere/bzImage"]);
}

#[test]
fn a_disk_in_use() {
    let place = Place::new();
    let disk = place.disk("disk", 1 << 20);
    let holder = BlockDevice::open(0, DiskConfig::new(&disk), Ledger::new()).unwrap();
    let option = format!("path={disk}");
    place.refuses(&["run", "--kernel", "6.1", "--disk", &option, "--exec", "true"], &[&disk, "in use", "copy"]);
    // Two readers do not disturb each other, a reader and a writer do.
    let option = format!("path={disk},readonly=on");
    place.refuses(&["run", "--kernel", "6.1", "--disk", &option, "--exec", "true"], &[&disk, "in use"]);
    drop(holder);
    // A program that another test is just starting has a copy of every descriptor until its exec, and with it the lock.
    let free = (0..100).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(20));
        BlockDevice::open(0, DiskConfig::new(&disk), Ledger::new()).is_ok()
    });
    assert!(free, "the lock outlives its holder");
}

#[test]
fn control_sockets_that_cannot_be() {
    let place = Place::new();
    let used = place.path("used");
    let _listener = UnixListener::bind(&used).unwrap();
    let (used, plain) = (used.to_str().unwrap().to_owned(), place.file("plain", ""));
    let long = format!("{}/{}", place.dir.path().display(), "x".repeat(100));
    for (path, words) in [
        ("/nowhere/s", &["/nowhere/s", "No such file", "can be written to"][..]),
        (&used, &[&used, "in use by another program"]),
        (&plain, &[&plain, "no socket"]),
        (&format!("{plain}/s"), &[&plain, "Not a directory"]),
        (&long, &["at most 107"]),
        ("/proc/s", &["/proc/s", "can be written to"]),
    ] {
        place.refuses(&["run", "--kernel", "6.1", "--control", path, "--exec", "true"], words);
        if path != used {
            place.refuses(&["ctl", path, "ping"], &[path]);
        }
    }
    assert_eq!(fs::read_dir(place.path("")).unwrap().count(), 2, "nothing is left beside them");
}

#[test]
fn sizes_and_counts() {
    let place = Place::new();
    for (option, value, words) in [
        ("--memory", "size=900T", &["900T", "use K, M or G"][..]),
        ("--memory", "size=", &["--memory", "512M or 1G"]),
        ("--memory", "-5", &["--memory"]),
        ("--memory", "size=16M", &["16 MiB", "64 MiB to 64 GiB"]),
        ("--memory", "size=65G", &["66560 MiB", "64 MiB to 64 GiB"]),
        ("--memory", "size=99999999999999G", &["too large"]),
        ("--cpus", "0", &["--cpus", "1 to 8"]),
        ("--cpus", "9", &["--cpus", "1 to 8"]),
        ("--cpus", "300", &["--cpus"]),
        ("--reboot", "never", &["never", "exit or restart"]),
        ("--serial", "printer", &["printer", "tty, null or file=PATH"]),
    ] {
        place.refuses(&["run", "--kernel", "6.1", "--exec", "true", &format!("{option}={value}")], words);
    }
    let long = "x".repeat(5000);
    place.refuses(&["run", "--kernel", "6.1", "--cmdline", &long, "--exec", "true"], &["command line", "at most"]);
    let initramfs = place.path("no-initramfs");
    let initramfs = initramfs.to_str().unwrap();
    place.refuses(&["run", "--kernel", "6.1", "--initramfs", initramfs], &[initramfs, "--initramfs"]);
}

/// More memory than the machine has free, up to the 64 GiB that a guest may have at all.
#[test]
fn more_memory_than_there_is() {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap();
    let free: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    let wanted = (free >> 20) + 8;
    assert!(wanted <= 64, "this machine has {} GiB free: no guest can ask for more", free >> 20);
    let option = format!("--memory=size={wanted}G");
    Place::new().refuses(&["run", "--kernel", "6.1", &option, "--exec", "true"], &["memory", "--memory"]);
}

#[test]
fn configuration_files() {
    let place = Place::new();
    let missing = place.path("missing.toml");
    place.refuses(&["run", "--config", missing.to_str().unwrap()], &["missing.toml", "No such file"]);
    for (name, text, words) in [
        ("typing.toml", "kernel = '6.1", &["typing.toml"][..]),
        ("unknown.toml", "kernle = '6.1'", &["unknown.toml", "kernle", "kernel"]),
        ("size.toml", "kernel = '6.1'\nmemory = '1X'", &["size.toml", "K, M or G"]),
        ("type.toml", "kernel = '6.1'\ncpus = 'two'", &["type.toml", "two"]),
        ("disk.toml", "kernel = '6.1'\n[[disk]]\nreadonly = true", &["disk.toml", "path"]),
        ("nic.toml", "kernel = '6.1'\n[nic]\nmodel = 'cx7'", &["nic.toml", "cx7", "model=cx5vf"]),
        ("speed.toml", "kernel = '6.1'\n[nic]\nspeed = 100", &["speed.toml", "speed", "odp"]),
        ("binary.toml", "\0\0\0", &["binary.toml"]),
    ] {
        let path = place.file(name, text);
        place.refuses(&["run", "--config", &path], words);
    }
}

#[test]
fn the_lab_and_what_it_does_not_know() {
    let place = Place::new();
    place.refuses(&["lab", "--scenario", "H99"], &["H99", "--list"]);
    place.refuses(&["lab", "--fs", "ntfs"], &["ntfs", "ext4"]);
    place.refuses(&["lab", "--kernel", "5.4"], &["5.4", "rnic prepare"]);
    place.refuses(&["lab", "--kernel", "/nowhere/bzImage"], &["/nowhere/bzImage"]);
    let mut nowhere = place.command(rnic());
    nowhere.env("TMPDIR", "/nowhere").args(["lab", "--scenario", "H12", "--kernel", "6.1"]);
    assert_refusal(&run(&mut nowhere, LIMIT), &["lab"], &["TMPDIR"]);
    place.assert_clean();
}

/// A file name of the report that cannot be written is refused before the guests have run for minutes.
#[test]
fn a_report_that_cannot_be_written() {
    let place = Place::new();
    place.refuses(&["lab", "--scenario", "H12", "--json-file", "/nowhere/report.json"], &["/nowhere/report.json"]);
    place.refuses(&["lab", "--scenario", "H12", "--journal", "/nowhere/journal"], &["/nowhere/journal"]);
    for option in ["--html", "--ktap", "--junit"] {
        place.refuses(&["lab", "--scenario", "H12", option, "/nowhere/report"], &["/nowhere/report", option]);
    }
    place.refuses(&["lab", "--compare", "/nowhere/old.json"], &["/nowhere/old.json", "cannot be read"]);
    let none = place.file("none.json", "{}");
    place.refuses(&["lab", "--compare", &none], &["none.json", "no report"]);
    let same = ["report", &none, "--ktap", "one", "--html", "./one"];
    place.refuses(&same, &["--ktap and --html", "one"]);
    place.assert_clean();
}

/// A report of step 2, which had neither attempts nor timelines, in every form, and beside itself.
#[test]
fn an_old_report_is_rendered_and_compared_without_a_run() {
    let place = Place::new();
    let row = |observed: &str, score: &str| {
        format!(
            r#"{{"rnic": "0.1.0", "host": "a host", "seed": 7, "rows": [{{"scenario": "H01", "fs": "ext4", "mode": "pinned", "folio": "single",
            "kernel": "6.1", "kernel_version": "6.1.192-2", "expected": "LOST", "observed": "{observed}",
            "evidence": ["power cut at #6740: the disk has B*8"], "seconds": 5.8, "score": "{score}"}}]}}"#
        )
    };
    let (old, new) =
        (place.file("old.json", row("LOST", "as_expected")), place.file("new.json", row("SAFE", "differs")));
    let report = |words: &[&str]| {
        let done = run(place.command(rnic()).arg("report").args(words), LIMIT);
        assert_eq!((done.code(), done.err.as_str()), (0, ""), "{words:?}");
        done.out
    };
    assert!(report(&[&new]).contains("<-- differs") && report(&[&new]).ends_with("1 differ, 0 inconclusive\n"));
    let files = ["r.ktap", "r.xml", "r.html", "r.json"].map(|name| place.file(name, ""));
    let [ktap, junit, html, json] = &files;
    let out = report(&[&new, "--ktap", ktap, "--junit", junit, "--html", html, "--json-file", json, "--compare", &old]);
    assert!(out.contains("verdict changed (1):") && out.contains("LOST               SAFE"), "{out}");
    for (file, word) in
        files.iter().zip(["not ok 1 H01/pinned/ext4/single", "<failure ", "data-verdict=\"SAFE\"", "\"SAFE\""])
    {
        let text = fs::read_to_string(file).unwrap();
        assert!(text.contains(word) && text.contains("the disk has B*8"), "{file}: {text}");
    }
    assert!(report(&[json, "--compare", &new]).ends_with("the same rows with the same verdicts\n"));
}

/// A shell that runs `script` with a /dev of its own: as root in a new mount namespace, otherwise in a user namespace too.
fn private_dev(place: &Place, script: &str) -> Done {
    let root = fs::metadata("/proc/self").map(|m| std::os::unix::fs::MetadataExt::uid(&m)).unwrap() == 0;
    let namespaces: &[&str] = if root { &["--mount"] } else { &["--mount", "--user", "--map-root-user"] };
    let script = format!("set -e; mount -t tmpfs -o mode=755 tmpfs /dev; {script}");
    let mut command = place.command("unshare");
    command.args(namespaces).args(["sh", "-c", &script]).env("ROOT", if root { "1" } else { "" });
    // What these tests copy to a place that everyone can read.
    fs::copy(rnic(), place.path("rnic")).unwrap();
    fs::copy(bzimage("6.1"), place.path("bzImage")).unwrap();
    fs::write(place.path("initramfs"), "not read that far").unwrap();
    fs::set_permissions(place.path("rnic"), fs::Permissions::from_mode(0o755)).unwrap();
    for name in ["bzImage", "initramfs"] {
        fs::set_permissions(place.path(name), fs::Permissions::from_mode(0o644)).unwrap();
    }
    run(command.env("FILES", place.dir.path().join("files")), LIMIT)
}

const BOOT: &str = "\"$FILES/rnic\" run --kernel \"$FILES/bzImage\" --initramfs \"$FILES/initramfs\" --host kvm";

#[test]
fn a_machine_without_kvm() {
    let place = Place::new();
    let done = private_dev(&place, &format!("exec {BOOT}"));
    assert_refusal(&done, &["without /dev/kvm"], &["/dev/kvm", "--host emulated"]);
    place.assert_clean();
}

/// As root: somebody else without the right. As somebody else: a file that only the real root may open.
#[test]
fn a_user_without_the_right_to_kvm() {
    let place = Place::new();
    let script = format!(
        "touch /dev/kvm; if [ \"$ROOT\" ]; then chmod 600 /dev/kvm; exec setpriv --reuid=65534 --regid=65534 --clear-groups {BOOT}; \
         fi; mount --bind /etc/shadow /dev/kvm; exec {BOOT}"
    );
    let done = private_dev(&place, &script);
    assert_refusal(&done, &["without the right"], &["/dev/kvm", "group"]);
    place.assert_clean();
}

/// A /dev/kvm that is something else.
#[test]
fn a_kvm_that_is_none() {
    let place = Place::new();
    let done = private_dev(&place, &format!("touch /dev/kvm; exec {BOOT}"));
    assert_refusal(&done, &["a file as /dev/kvm"], &["KVM"]);
    place.assert_clean();
}

#[test]
fn help_that_a_person_can_read() {
    for words in [
        &["--help"][..],
        &["run", "--help"],
        &["lab", "--help"],
        &["report", "--help"],
        &["ctl", "--help"],
        &["ctl", "s", "fault", "--help"],
        &["kvm-probe", "--help"],
        &["man", "--help"],
        &["help", "run"],
    ] {
        // A terminal as wide as it likes: the width is our own limit.
        let done = run(Command::new(rnic()).args(words).env("COLUMNS", "300"), LIMIT);
        assert_eq!((done.code(), done.err.as_str()), (0, ""), "{words:?}");
        let widest = done.out.lines().map(|line| line.chars().count()).max().unwrap();
        assert!((40..=HELP_WIDTH).contains(&widest), "{words:?}: a line of {widest} characters\n{}", done.out);
        assert!(done.out.contains("Usage: rnic"), "{}", done.out);
    }
}

/// Every option has a text of its own.
#[test]
fn no_option_without_a_word() {
    for command in ["run", "lab", "report"] {
        let help = run(Command::new(rnic()).args([command, "--help"]), LIMIT).out;
        let lines: Vec<_> = help.lines().collect();
        let options = lines.iter().enumerate().filter(|(_, line)| line.trim_start().starts_with("--"));
        for (at, line) in options {
            let said =
                line.trim().contains("  ") || lines.get(at + 1).is_some_and(|next| next.starts_with("          "));
            assert!(said, "{command}: nothing is said about {line}");
        }
    }
}

#[test]
fn usage_errors_have_status_2_and_say_what_there_is() {
    let place = Place::new();
    for words in [&["fly"][..], &["run", "--kernle", "6.1"], &["ctl", "fly"]] {
        let done = run(place.command(rnic()).args(words), LIMIT);
        assert_eq!(done.code(), 2, "{words:?}: {done:?}");
        assert!(done.err.contains(words[words.len().saturating_sub(2).min(1)]) || done.err.contains("fly"), "{done:?}");
    }
    assert!(Path::new("Cargo.toml").exists());
}

#[test]
fn the_list_of_scenarios() {
    let done = run(Command::new(rnic()).args(["lab", "--list"]), LIMIT);
    assert_eq!(done.code(), 0, "{done:?}");
    for scenario in ["H12", "H03", "H04", "H18", "H19", "H10"] {
        assert!(done.out.contains(scenario), "{scenario} is not in\n{}", done.out);
    }
    assert!(!done.out.contains("run on 6.1.192-2"), "{}", done.out);
    let done = run(Command::new(rnic()).args(["lab", "--list", "--verbose"]), LIMIT);
    assert!(done.out.contains("LOST on 6.1 ext4 single") && done.out.contains("run on 6.1.192-2"), "{}", done.out);
}

/// A story's mistake is told before anything boots, in one sentence with the file, the line and the key.
#[test]
fn a_mistake_in_a_scenario_file_is_one_sentence() {
    let place = Place::new();
    let path = place.path("mine.toml");
    fs::write(&path, "id = \"X\"\ntitle = \"t\"\nfilesystems = [\"ext4\"]\nsteps = []\n").unwrap();
    place.refuses(&["lab", "--scenario-file", path.to_str().unwrap()], &["mine.toml, line 4: ", "steps"]);
    place.refuses(&["lab", "--scenario-file", "/nowhere.toml"], &["/nowhere.toml", "cannot be read"]);
}
