// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control socket against a guest at work: what it is asked is what the guest does, and what it orders the guest feels.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::{Done, Running, rnic, run};
use crate::machine::{END_LIMIT, LIMIT, rnic_run};

/// Two pingpongs without end, the second once the first listens (port 18515 is 4853 in hexadecimal); a program that makes queue pairs until one
/// is refused; then the port, as sysfs has it.
const SCRIPT: &str = r#"
s() { until grep -q $1 /sys/class/infiniband/mlx5_0/ports/1/state; do sleep .1; done; echo port=$1; }
s ACTIVE
p() { ibv_rc_pingpong -d mlx5_0 -n 100000000 $1 2>&1 >/dev/null | sed 's/^/ended=/'; }
p &
until grep -q :4853 /proc/net/tcp /proc/net/tcp6; do sleep .1; done
p localhost &
echo 'import ctypes as c,time
v=c.CDLL("libibverbs.so.1",use_errno=True);P=c.c_void_p
def f(n,*a):
 g=getattr(v,n);g.restype=P;return P(g(*a))
d=c.cast(f("ibv_get_device_list",None),c.POINTER(P))
x=f("ibv_open_device",P(d[0]));q=f("ibv_create_cq",x,9,None,None,0);p=f("ibv_alloc_pd",x)
class A(c.Structure):_fields_=[("w",P*4),("n",c.c_uint32*7)]
print("making=",flush=True)
while 1:
 r=f("ibv_create_qp",p,c.byref(A((P*4)(None,q.value,q.value,None),(c.c_uint32*7)(1,1,1,1,0,2,0))))
 if not r.value:break
 v.ibv_destroy_qp(r);time.sleep(.05)
print("errno=%d"%c.get_errno(),flush=True)'|python3
s DOWN
s ACTIVE
sleep 1000
"#;

const PLAN: &str = "[[inject]]\nname = 'refused'\ndevice = 'nic0'\naction = 'command-status'\n\
    command = 'CREATE_QP'\nstatus = 'NO_RES'\nnth = 1\n";

struct Socket {
    dir: tempfile::TempDir,
    path: PathBuf,
}

impl Socket {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        Self { dir, path }
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn give(&self, words: &[&str]) -> Done {
        run(Command::new(rnic()).arg("ctl").arg(&self.path).args(words), LIMIT)
    }

    /// The answer to an order that is carried out.
    fn ask(&self, words: &[&str]) -> Value {
        let done = self.give(words);
        assert_eq!((done.code(), done.err.as_str()), (0, ""), "{words:?}: {done:?}");
        serde_json::from_str(&done.out).unwrap_or_else(|error| panic!("{words:?}: {error}: {}", done.out))
    }

    fn machine(&self, options: &[&str]) -> Command {
        let socket = self.path.to_str().unwrap();
        rnic_run("7.3", &[&["--cpus", "2", "--nic", "--control", socket], options].concat())
    }
}

/// The queue pairs that are connected to one another, and what the NIC has executed.
fn at_work(inspected: &Value) -> (Vec<(u64, u64)>, u64) {
    let nic = &inspected["nics"][0];
    let qps = nic["qps"]["list"].as_array().unwrap().iter();
    let connected = qps.filter(|qp| qp["service"] == "RC" && qp["state"] == "RTS");
    let pairs = connected.map(|qp| (qp["qpn"].as_u64().unwrap(), qp["remote_qpn"].as_u64().unwrap())).collect();
    (pairs, nic["counters"]["wqes"].as_u64().unwrap())
}

#[test]
fn orders_reach_a_machine_at_work() {
    let socket = Socket::new();
    let mut guest = Running::start(socket.machine(&[]).args(["--exec", SCRIPT]));
    guest.wait_for("making=", LIMIT);
    the_pingpong_is_seen(&socket, &guest);
    one_machine_a_socket(&socket);
    it_stands_and_is_armed_meanwhile(&socket);
    assert!(!guest.out().contains("errno="));
    socket.ask(&["resume"]);
    // The status NO_RES is EAGAIN to the program.
    guest.wait_for("errno=11", LIMIT);
    the_firing_is_told(&socket);
    assert_eq!(socket.ask(&["port", "0", "down"])["changed"], true);
    guest.wait_for("port=DOWN", LIMIT);
    guest.wait_for("ended=Failed status transport retry counter exceeded", LIMIT);
    assert_eq!(socket.ask(&["port", "0", "up"])["state"], "up");
    let ended = Instant::now();
    while guest.out().matches("port=ACTIVE").count() < 2 {
        assert!(ended.elapsed() < LIMIT, "{}", guest.out());
        std::thread::sleep(Duration::from_millis(50));
    }
    socket.ask(&["power-off"]);
    let done = guest.finish(END_LIMIT);
    assert_eq!(done.code(), 0, "{done:?}");
    assert!(done.err.contains("rnic: stopped"), "{}", done.err);
    assert!(!socket.path.exists());
    let late = socket.give(&["ping"]);
    assert!(late.code() == 1 && late.err.contains("is a machine running"), "{late:?}");
}

/// How soon they meet is the guest's affair: it has printed nothing that says so.
fn the_pingpong_is_seen(socket: &Socket, guest: &Running) {
    let mutual = |pairs: &[(u64, u64)]| pairs.iter().filter(|(one, other)| pairs.contains(&(*other, *one))).count();
    let since = Instant::now();
    let before = loop {
        let (pairs, wqes) = at_work(&socket.ask(&["inspect"]));
        if mutual(&pairs) == 2 {
            break wqes;
        }
        assert!(since.elapsed() < LIMIT && !guest.out().contains("ended="), "{pairs:x?}\n{}", guest.out());
    };
    while at_work(&socket.ask(&["inspect"])).1 <= before {
        assert!(since.elapsed() < LIMIT, "nothing moves");
    }
}

fn one_machine_a_socket(socket: &Socket) {
    let second = Running::start(&mut socket.machine(&[])).finish(LIMIT);
    assert!(second.code() == 1 && second.err.contains("in use by another program"), "{second:?}");
}

fn it_stands_and_is_armed_meanwhile(socket: &Socket) {
    let paused = socket.ask(&["pause"]);
    assert_eq!((&paused["state"], paused["vcpus"].as_array().unwrap().len()), (&Value::from("paused"), 2));
    let plan = socket.file("plan.toml", PLAN);
    let wrong = socket.give(&["fault", "arm", &socket.file("wrong.toml", &PLAN.replace("NO_RES", "NO_SUCH"))]);
    assert!(wrong.code() == 1 && wrong.err.contains("line 6") && wrong.err.contains("\"status\""), "{wrong:?}");
    let armed = socket.ask(&["fault", "arm", &plan, "--seed", "1"]);
    assert_eq!(armed["armed"][0]["name"], "refused", "{armed}");
    let (_, before) = at_work(&socket.ask(&["inspect"]));
    std::thread::sleep(Duration::from_millis(500));
    let inspected = socket.ask(&["inspect"]);
    assert_eq!(at_work(&inspected).1, before, "it stands");
    assert_eq!((&inspected["machine"]["state"], &inspected["nics"][0]["paused"]), (&"paused".into(), &true.into()));
    assert_eq!(socket.ask(&["fault", "list"])["rules"][0]["fired"], 0);
}

fn the_firing_is_told(socket: &Socket) {
    let list = socket.ask(&["fault", "list"]);
    assert_eq!((&list["rules"][0]["name"], &list["rules"][0]["fired"]), (&"refused".into(), &1.into()), "{list}");
    let seq = list["firings"][0]["seq"].as_u64().unwrap();
    let page = socket.ask(&["ledger", "--since", &seq.to_string(), "--limit", "1"]);
    assert_eq!(page["events"][0]["firing"]["occasion"], "command CREATE_QP", "{page}");
    let disarmed = socket.ask(&["fault", "disarm", "refused"]);
    assert_eq!(disarmed["disarmed"][0]["fired"], 1);
    let unknown = socket.give(&["fault", "disarm", "refused"]);
    assert!(unknown.code() == 1 && unknown.err.contains("none is armed"), "{unknown:?}");
}

/// A machine that is told to stand can still be ended by a signal, and leaves no socket.
#[test]
fn a_signal_ends_a_machine_that_stands() {
    let socket = Socket::new();
    let mut guest = Running::start(socket.machine(&[]).args(["--exec", "echo up; sleep 1000"]));
    guest.wait_for("up", LIMIT);
    socket.ask(&["pause"]);
    guest.signal("TERM");
    let done = guest.finish(END_LIMIT);
    assert_eq!(done.code(), 143, "{done:?}");
    assert!(!Path::new(&socket.path).exists());
}
