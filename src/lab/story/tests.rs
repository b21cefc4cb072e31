// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Mistakes in stories get one sentence with line and key.

use super::step::{Advice, Range};
use super::*;

const GOOD: &str = r#"
id = "H12"
title = "a read lands in a clean page"
filesystems = ["ext4", "btrfs"]
[files]
f = { pages = 256 }
[pages]
k = { file = "f", at = 100 }
next = { file = "f", at = 101 }
[[step]]
store = { page = "k", tag = "B" }
[[step]]
dio_read = { page = "k", tag = "C", name = "read" }
[[step]]
fsync = { file = "f" }
[[step]]
advise = { advice = "pageout", page = "next", range = "half_folio" }
[[step]]
finish = { name = "read" }
[[step]]
cut = {}
"#;

#[test]
fn a_story_is_read() {
    let stories = Story::parse(GOOD).unwrap();
    let [story] = stories.as_slice() else { panic!("{stories:?}") };
    assert_eq!((story.steps.len(), story.folios.len(), story.pages["next"].at), (6, 1, 101));
    let Step::DioRead(read) = story.steps[1].get_ref() else { panic!("{:?}", story.steps[1]) };
    assert_eq!((read.bytes, read.tag), (4096, 'C'));
}

#[test]
fn a_mistake_gets_one_sentence_with_line_and_key() {
    for (good, bad, said) in [
        ("tag = \"B\"", "tga = \"B\"", "line 11: unknown field `tga`"),
        ("tag = \"B\"", "tag = \"b\"", "line 10, `tag`: 'b' is not a letter from B to Z"),
        (
            "page = \"k\", tag = \"B\"",
            "page = \"q\", tag = \"B\"",
            "line 10, `page`: there is no page \"q\"; there are k, next",
        ),
        (
            "finish = { name = \"read\" }",
            "finish = { name = \"raed\" }",
            "line 18, `name`: no earlier step that has not ended is called \"raed\"; there are read",
        ),
        ("fsync = {", "fsnyc = {", "line 15: unknown variant `fsnyc`"),
        ("at = 101", "at = 300", "line 1, `pages`: page \"next\" is page 300 of a file of 256 pages"),
        ("cut = {}", "rdma_read = { page = \"k\" }", "line 20, `step`: this step wants an RDMA device"),
        ("pages = 256", "pages = 256, mode = 1", "line 6: unknown field `mode`"),
        ("\"btrfs\"", "\"btrsf\"", "line 4: unknown variant `btrsf`"),
        ("[[step]]\ncut = {}\n", "[[step]\ncut = {}\n", "line 20: "),
        (
            "\"btrfs\"]\n[files]",
            "\"raw\"]\n[files]\ng = { pages = 1 }",
            "line 1, `files`: \"raw\" is the block device itself, which is one file",
        ),
        (
            "\"btrfs\"]",
            "\"raw\"]\ndisks = [\"raid1\"]",
            "line 1, `disks`: \"raw\" is the virtio disk itself: its only disk is \"plain\"",
        ),
    ] {
        let text = GOOD.replacen(good, bad, 1);
        assert_ne!(text, GOOD, "{good}");
        let error = Story::parse(&text).unwrap_err();
        assert!(error.starts_with(said) && !error.contains('\n'), "{bad}: {error}");
    }
}

const EXPECTS: &str = r#"
[[expect]]
fs = "btrfs"
folio = "single"
mode = "disk"
kernels = "6.12.97..6.12"
verdict = "LOST(EUCLEAN)"
source = "run on 6.12.117-1, 2026-11-29"
[[expect]]
verdict = "SAFE|LOST+LATE"
source = "source read: a file"
"#;

#[test]
fn the_first_expectation_that_matches_counts() {
    let story = Story::parse(&format!("{GOOD}{EXPECTS}")).unwrap().remove(0);
    let expected = |at: usize, version| {
        let rows = crate::plan::rows_of(story.clone());
        crate::expect::expected(&rows[at], version).map(|expected| (expected.verdict, expected.source))
    };
    let (second, first) = (("SAFE|LOST+LATE", "source read: a file"), "run on 6.12.117-1, 2026-11-29");
    assert_eq!(expected(0, (6, 12, 117)), Some(second));
    assert_eq!(expected(1, (6, 12, 117)), Some(("LOST(EUCLEAN)", first)));
    assert_eq!(expected(1, (6, 12, 96)), Some(second));
    let none = Story::parse(GOOD).unwrap().remove(0);
    assert_eq!(crate::expect::expected(&crate::plan::rows_of(none)[0], (6, 1, 192)), None);
}

#[test]
fn a_mistake_in_an_expectation_gets_its_sentence() {
    let good = format!("{GOOD}{EXPECTS}");
    for (right, bad, said) in [
        ("SAFE|LOST+LATE", "SAFE|LOST+LAET", "line 30, `verdict`: \"LOST+LAET\" is no verdict"),
        ("6.12.97..6.12", "6.12-6.13", "line 27: `kernels`: \"6.12-6.13\" is no range of kernels"),
        ("source = \"source read: a file\"\n", "", "line 30: missing field `source`"),
        ("source read: a file", " ", "line 30, `source`: say where this comes from"),
        ("fs = \"btrfs\"", "fs = \"fat\"", "line 24: unknown variant `fat`"),
    ] {
        let error = Story::parse(&good.replacen(right, bad, 1)).unwrap_err();
        assert!(error.starts_with(said) && !error.contains('\n'), "{bad}: {error}");
    }
}

#[test]
fn so_many_reads_at_once_are_refused_as_a_judge_cannot_look_through() {
    let read = |n: usize| format!("[[step]]\ndio_read = {{ page = \"k\", tag = \"C\", name = \"r{n}\" }}\n");
    let with =
        |count: usize| GOOD.replace("[[step]]\ncut", &((0..count).map(read).collect::<String>() + "[[step]]\ncut"));
    assert!(Story::parse(&with(8)).is_ok());
    let error = Story::parse(&with(9)).unwrap_err();
    assert!(error.contains("`dio_read`: 8 reads are held already"), "{error}");
}

#[test]
fn parameters_make_a_story_of_each_combination() {
    let text = GOOD.replace("\"pageout\"", "\"$advice\"").replace("\"half_folio\"", "\"$range\"");
    let text = format!("{text}[parameters]\nadvice = [\"pageout\", \"cold\"]\nrange = [\"page\", \"file\"]\n");
    let stories = Story::parse(&text).unwrap();
    let variants: Vec<_> = stories.iter().map(|story| story.variant.as_str()).collect();
    assert_eq!(variants, ["pageout+page", "pageout+file", "cold+page", "cold+file"]);
    let Step::Advise(last) = stories[3].steps[3].get_ref() else { panic!("{:?}", stories[3].steps[3]) };
    assert_eq!((last.advice, last.range), (Advice::Cold, Range::File));
    for (good, bad, said) in [
        ("\"cold\"", "\"warm\"", "line 17: unknown variant `warm`"),
        ("advice = [\"pageout\"", "advise = [\"pageout\"", "line 1, `parameters`: no step says \"$advise\""),
    ] {
        let error = Story::parse(&text.replacen(good, bad, 1)).unwrap_err();
        assert!(error.starts_with(said), "{error}");
    }
}

/// Every story in the repository is one, and a row of this program.
#[test]
fn shipped_stories_are_read() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../stories");
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut files: Vec<_> = files.collect();
    let mut listed: Vec<_> = shipped::TEXTS.iter().map(|(name, _)| name.to_string()).collect();
    files.sort_unstable();
    listed.sort_unstable();
    assert_eq!(files, listed);
    for (name, text) in shipped::TEXTS {
        Story::parse(text).unwrap_or_else(|mistake| panic!("{name}, {mistake}"));
    }
    let has = |id: &str, mode: &str| shipped::scenarios().iter().any(|row| (row.id, row.mode) == (id, mode));
    for (id, mode) in [("H12", "dio"), ("H12", "dio-held"), ("C-lie", "dio-held"), ("C-miss", "dio")] {
        assert!(has(id, mode), "{id} {mode}");
    }
    for (id, mode) in [("H01", "pinned"), ("H01", "odp"), ("H01", "rxe-pinned"), ("H01", "rxe-odp"), ("C-hide", "odp")]
    {
        assert!(has(id, mode), "{id} {mode}");
    }
    for (id, mode) in [("H03", "dio"), ("H04", "dio"), ("H10", "cpu"), ("H10", "cpu-late"), ("H01", "odp-ro")] {
        assert!(has(id, mode), "{id} {mode}");
    }
    for mode in ["pinned", "pinned-ro", "odp", "odp-ro", "rxe-pinned", "rxe-ro", "rxe-odp"] {
        assert!(has("H13", mode), "H13 {mode}");
    }
    assert!(has("H03n", "cold+half_folio") && has("H04x", "disk"));
}

#[test]
fn outcomes_rounds_and_races_have_their_mistakes() {
    let step = |step: &str| GOOD.replace("[[step]]\ncut", &format!("[[step]]\n{step}\n[[step]]\ncut"));
    let top = |key: &str| GOOD.replace("[files]", &format!("{key}\n[files]"));
    let store = |rest: &str| step(&format!("store = {{ page = \"k\", tag = \"D\", {rest} }}"));
    for (text, said) in [
        (store("allow = [\"maybe\"]"), "line 21: `allow`: \"maybe\" is no outcome"),
        (store("allow = [\"errno:EWHAT\"]"), "line 21: `allow`: \"EWHAT\" is no error"),
        (store("allow = [\"waits\"]"), "line 20, `allow`: \"waits\" is for a store, write or punch with `background`"),
        (store("allow = [\"error:x\"]"), "line 20, `allow`: \"error:...\" is the status of a work request"),
        (store("background = \"read2\", allow = [\"waits\", \"errno:EIO\"]"), ""),
        (top("trials = 0"), "line 1, `trials`: the steps would be played 0 times"),
        (top("trials = 6"), ""),
        (top("race = { rounds = 101 }"), "line 1, `race`: the steps would be played 101 times"),
        (top("race = { rounds = 10 }"), ""),
        (top("race = { rounds = 10 }\ntrials = 2"), "line 1, `trials`: a race has rounds"),
        (
            top("trials = 2").replace("finish = { name = \"read\" }", "cut = {}"),
            "line 1, `trials`: \"read\" has not ended",
        ),
        (top("core = [\"ext4\"]\ncore_modes = [\"odp\"]"), "line 1, `core_modes`: \"odp\" is none"),
    ] {
        let told = Story::parse(&text).map_or_else(|error| error, |_| String::new());
        assert!(told.starts_with(said) && told.is_empty() == said.is_empty() && !told.contains('\n'), "{text}: {told}");
    }
    let race = top("race = { rounds = 10 }");
    let hold =
        race.replace("fsync = { file = \"f\" }", "hold = { page = \"k\", point = \"before_data\", name = \"h\" }");
    assert!(Story::parse(&hold).unwrap_err().contains("`race`: in a race nothing is held"));
    let two = race.replace("fsync = { file = \"f\" }", "store = { page = \"k\", tag = \"D\" }");
    assert!(Story::parse(&two).unwrap_err().contains("`race`: an earlier step still writes page \"k\""));
}

#[test]
fn each_round_has_letters_of_its_own() {
    let story = Story::parse(GOOD).unwrap().remove(0);
    let letters: Vec<_> = (0..3).map(|round| (story.letter('B', round), story.letter('C', round))).collect();
    assert_eq!(letters, [('B', 'C'), ('D', 'E'), ('F', 'G')]);
    assert_eq!(story.letter('B', 25), 'B');
}

#[test]
fn registered_memory_and_pipes_have_their_mistakes() {
    let with = |steps: &[&str]| {
        let steps: String = steps.iter().map(|step| format!("[[step]]\n{step}\n")).collect();
        GOOD.replace("[files]", "[files]\ng = { pages = 8 }").replace("[[step]]\ncut", &format!("{steps}[[step]]\ncut"))
            + "[processes]\np = { user = true }\n"
    };
    let fix = "fix = { file = \"f\", name = \"b\" }";
    let read = "dio_read = { page = \"k\", tag = \"E\", name = \"other\", by = \"io_uring_fixed\", buffer = \"b\" }";
    let finish = "finish = { name = \"other\" }";
    let splice = "vmsplice = { page = \"k\", name = \"pipe\" }";
    let umem = "umem = { file = \"f\", name = \"b\" }";
    let packet = "xdp_receive = { page = \"k\", tag = \"E\", name = \"b\" }";
    for (text, said) in [
        (with(&[fix, read, finish, "unfix = { name = \"b\" }"]), ""),
        (with(&[read, finish]), "line 21, `name`: no earlier step that has not ended is called \"b\""),
        (with(&[&fix.replace("\"f\"", "\"g\""), read, finish]), "line 23, `name`: \"b\" is another file's"),
        (with(&[&fix.replace(" }", ", process = \"p\" }"), read, finish]), "line 23, `name`: \"b\" is another file's"),
        (
            with(&[fix, &read.replace("io_uring_fixed", "pread")]),
            "line 23, `buffer`: only a read by \"io_uring_fixed\"",
        ),
        (with(&[&read.replace("buffer = \"b\"", "allow = [\"errno:EFAULT\"]"), finish]), ""),
        (
            with(&[&read.replace("_fixed\", buffer = \"b\"", "\", allow = [\"errno:EFAULT\"]"), finish]),
            "line 21, `allow`: only a read by \"io_uring_fixed\"",
        ),
        (with(&[splice, "pipe_read = { name = \"pipe\" }"]), ""),
        (
            with(&[splice, "unfix = { name = \"pipe\" }"]),
            "line 23, `name`: \"pipe\" is no step that this can be done to",
        ),
        (with(&[umem, packet, "close_umem = { name = \"b\" }"]), ""),
        (with(&[fix, packet]), "line 23, `name`: \"b\" is no step that this can be done to"),
        (with(&["vm_write = { page = \"k\", tag = \"E\", into = \"p\" }"]), ""),
        (
            with(&["vm_write = { page = \"k\", tag = \"E\", into = \"q\" }"]),
            "line 21, `into`: there is no process \"q\"",
        ),
    ] {
        let told = Story::parse(&text).map_or_else(|error| error, |_| String::new());
        assert!(told.starts_with(said) && told.is_empty() == said.is_empty() && !told.contains('\n'), "{text}: {told}");
    }
}

#[test]
fn processes_have_their_mistakes() {
    let with = |processes: &str, steps: &[&str]| {
        let steps: String = steps.iter().map(|step| format!("[[step]]\n{step}\n")).collect();
        GOOD.replace("[[step]]\ncut", &format!("{steps}[[step]]\ncut")) + "[processes]\n" + processes
    };
    let (store, kill) = ("store = { page = \"next\", tag = \"D\", process = \"p\" }", "kill = { process = \"p\" }");
    let read = "dio_read = { page = \"k\", tag = \"E\", name = \"other\", process = \"p\" }";
    let again = "fsync = { file = \"f\", background = \"other\" }";
    let finish = "finish = { name = \"other\" }";
    let rdma = "rdma_read = { page = \"k\", process = \"p\" }";
    for (text, said) in [
        (with("p = {}", &[store, read, finish, kill]), ""),
        (with("p = {}", &[rdma]), "line 20, `step`: this step wants an RDMA device"),
        (with("p = {}\nq = {}", &[read, kill, again, "wait = { name = \"other\" }"]), ""),
        (with("q = {}", &[store]), "line 20, `process`: there is no process \"p\"; there are q"),
        (with("q = {}", &[kill]), "line 20, `process`: there is no process \"p\"; there are q"),
        (with("p = { q = 1 }", &[store]), "line 25: unknown field `q`"),
        (with("p = {}", &[kill, store]), "line 22, `process`: an earlier step has killed process \"p\""),
        (with("p = {}", &[kill, kill]), "line 22, `process`: an earlier step has killed process \"p\""),
        (
            with("p = {}", &[read, kill, finish]),
            "line 24, `name`: no earlier step that has not ended is called \"other\"",
        ),
        (with("p = {}", &[read, finish, again, kill, again]), "line 28, `background`: \"other\" is taken"),
        (with("a = {}\nb = {}\nc = {}\nd = {}", &[]), ""),
        (with("a = {}\nb = {}\nc = {}\nd = {}\ne = {}", &[]), "line 1, `processes`: there are 5 processes; 4 will do"),
        (with("p = {}", &[rdma]).replace("[files]", "registrations = [\"odp\"]\n[files]"), ""),
    ] {
        let told = Story::parse(&text).map_or_else(|error| error, |_| String::new());
        assert!(told.starts_with(said) && told.is_empty() == said.is_empty() && !told.contains('\n'), "{text}: {told}");
    }
}

const BUFFER: &str = r#"
id = "H11"
title = "a source changes"
filesystems = ["ext4"]
[files]
f = { pages = 256 }
[pages]
k = { file = "f", at = 100 }
next = { file = "f", at = 101 }
[buffers]
source = { page = "k" }
[[step]]
hold = { page = "k", buffer = "source", nth = 2, point = "before_data", name = "write" }
[[step]]
dio_write = { page = "k", tag = "C", buffer = "source", background = "dio" }
[[step]]
change = { buffer = "source", tag = "D" }
[[step]]
finish = { name = "write" }
[[step]]
wait = { name = "dio" }
"#;

#[test]
fn a_buffer_is_of_one_page_and_of_the_agents_own_process() {
    let story = Story::parse(BUFFER).unwrap().remove(0);
    let Step::Hold(hold) = story.steps[0].get_ref() else { panic!("{:?}", story.steps[0]) };
    assert_eq!((hold.nth, hold.buffer.as_deref()), (2, Some("source")));
    for (good, bad, said) in [
        (
            "source = { page = \"k\" }",
            "source = { page = \"q\" }",
            "line 1, `buffers`: buffer \"source\" is of page \"q\"",
        ),
        (
            "dio_write = { page = \"k\"",
            "dio_write = { page = \"next\"",
            "line 14, `buffer`: buffer \"source\" is of page \"k\"",
        ),
        (
            "change = { buffer = \"source\"",
            "change = { buffer = \"sink\"",
            "line 16, `buffer`: there is no buffer \"sink\"; there are source",
        ),
        ("nth = 2", "nth = 0", "line 12, `nth`: 0 is not from 1 to 8"),
        ("tag = \"D\" }", "tag = \"D\", by = \"rdma\" }", "line 16, `step`: this step wants an RDMA device"),
        ("background = \"dio\"", "background = \"dio\", replaces = true", "line 14, `buffer`: `replaces` is not for"),
    ] {
        let error = Story::parse(&BUFFER.replacen(good, bad, 1)).unwrap_err();
        assert!(error.starts_with(said) && !error.contains('\n'), "{bad}: {error}");
    }
}

#[test]
fn who_can_be_interrupted_and_on_what_disks_a_story_is_played() {
    let with = |steps: &str| GOOD.replacen("[[step]]\ncut = {}\n", steps, 1);
    let good =
        with("[[step]]\npunch = { page = \"k\", background = \"hole\" }\n[[step]]\ninterrupt = { name = \"hole\" }\n");
    let story = Story::parse(&good.replacen("[files]", "disks = [\"plain\", \"pmem\"]\n[files]", 1)).unwrap().remove(0);
    assert_eq!(crate::plan::rows_of(story).len(), 4, "two file systems on two disks");
    for (steps, said) in [
        (
            "[[step]]\ninterrupt = { name = \"hole\" }\n",
            "line 20, `name`: no earlier step that has not ended is called",
        ),
        (
            "[[step]]\nhold = { page = \"k\", point = \"before_data\", name = \"h\" }\n[[step]]\ninterrupt = { name = \"h\" }\n",
            "line 22, `name`: \"h\" is no step",
        ),
    ] {
        let error = Story::parse(&with(steps)).unwrap_err();
        assert!(error.starts_with(said), "{error}");
    }
    let theirs = good.replacen("background = \"hole\"", "background = \"hole\", process = \"p\"", 1);
    let error = Story::parse(&theirs.replacen("[pages]", "[processes]\np = {}\n[pages]", 1)).unwrap_err();
    assert!(error.contains("`interrupt`") && error.contains("only the agent's own"), "{error}");
}
