// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
use std::collections::BTreeMap;
use std::io::Read;

use super::*;

/// Name -> (mode, data).
type Members = BTreeMap<String, (u32, Vec<u8>)>;

/// Reads a newc archive: name -> (mode, data).
fn unpack(bytes: &[u8]) -> Members {
    let mut members = BTreeMap::new();
    let mut at = 0;
    let align = |at: usize| at.next_multiple_of(4);
    loop {
        assert_eq!(&bytes[at..at + 6], b"070701");
        let field = |i: usize| {
            let text = std::str::from_utf8(&bytes[at + 6 + 8 * i..][..8]).unwrap();
            u32::from_str_radix(text, 16).unwrap()
        };
        let (mode, size, name_len) = (field(1), field(6) as usize, field(11) as usize);
        let name = String::from_utf8(bytes[at + 110..][..name_len - 1].to_vec()).unwrap();
        let data = align(at + 110 + name_len);
        if name == "TRAILER!!!" {
            assert_eq!(data + size, bytes.len());
            return members;
        }
        members.insert(name, (mode, bytes[data..data + size].to_vec()));
        at = align(data + size);
    }
}

struct Fixture {
    dir: tempfile::TempDir,
    kernel: KernelSource,
}

/// A module tree of one release in which xfs is compressed and pvpanic is missing.
fn fixture(dep: &str) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("lib/modules/6.9-x");
    for line in dep.lines() {
        let path = tree.join(line.split(':').next().unwrap());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut bytes = path.file_name().unwrap().as_encoded_bytes().to_vec();
        if path.extension().unwrap() == "xz" {
            bytes = liblzma::encode_all(&bytes[..], 0).unwrap();
        }
        fs::write(path, bytes).unwrap();
    }
    fs::write(tree.join("modules.dep"), dep).unwrap();
    fs::write(tree.join("modules.builtin"), "kernel/drivers/virtio/virtio_pci.ko\n").unwrap();
    fs::write(tree.join("modules.softdep"), "softdep ext4 pre: crypto-crc32c\n").unwrap();
    fs::write(tree.join("modules.alias"), "alias crypto-crc32c crc32c_generic\nalias x absent\n").unwrap();
    fs::write(tree.join("modules.dep.bin"), "index").unwrap();
    fs::write(dir.path().join("agent"), "the agent").unwrap();
    let kernel = KernelSource {
        name: "x".into(),
        release: "6.9-x".into(),
        image: PathBuf::new(),
        modules: Some(tree),
        root: None,
        package_version: None,
    };
    Fixture { dir, kernel }
}

const DEP: &str = "\
b/virtio_blk.ko: b/virtio.ko
b/virtio.ko:
f/ext4.ko: f/jbd2.ko
f/jbd2.ko:
f/overlay.ko:
c/crc32c_generic.ko:
drivers/infiniband/hw/other.ko: f/jbd2.ko
u/ocfs2.ko: u/stack.ko f/jbd2.ko
u/stack.ko:
f/xfs.ko.xz: f/lib-crc.ko
f/lib-crc.ko:
f/unused.ko:
f/unwanted.ko:
";

fn build_with(fixture: &Fixture, modules: &[&str]) -> Result<(Members, Built), ImageError> {
    let agent = fixture.dir.path().join("agent");
    let (mut file, built) = build(&Spec {
        kernel: &fixture.kernel,
        agent: &agent,
        boot: &["absent", "unused"],
        modules,
        dependents_of: &["jbd2"],
        files: &[],
    })?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, built.bytes);
    Ok((unpack(&bytes), built))
}

#[test]
fn carries_agent_modules_and_their_lists() {
    let (members, built) = build_with(&fixture(DEP), &["xfs", "mlx5_ib"]).unwrap();
    assert_eq!(members["init"], (0o100_755, b"the agent".to_vec()));
    assert_eq!(members["dev/console"].0, 0o020_600);
    let text = |name: &str| String::from_utf8(members[name].1.clone()).unwrap();
    assert_eq!(
        text("etc/rnic-modules"),
        "b/virtio.ko\nb/virtio_blk.ko\nc/crc32c_generic.ko\nf/jbd2.ko\nf/ext4.ko\nf/overlay.ko\nf/unused.ko\n"
    );
    let base = "lib/modules/6.9-x";
    assert_eq!(text(&format!("{base}/f/xfs.ko")), "xfs.ko.xz", "decompressed, under its plain name");
    assert!(text(&format!("{base}/modules.dep")).contains("f/xfs.ko: f/lib-crc.ko\n"));
    assert_eq!(text(&format!("{base}/modules.alias")), "alias crypto-crc32c crc32c_generic\n");
    assert!(!members.contains_key(&format!("{base}/f/unwanted.ko")));
    assert!(!members.contains_key(&format!("{base}/modules.dep.bin")), "an index of other names would mislead kmod");
    assert!(members.contains_key("lib/modules"), "directories come with their files");
    assert_eq!((built.modules, built.missing), (11, vec!["mlx5_ib".to_owned()]));
    assert!(
        text(&format!("{base}/modules.dep")).contains("u/ocfs2.ko: u/stack.ko f/jbd2.ko\nu/stack.ko:"),
        "it builds on jbd2"
    );
    assert!(!members.contains_key(&format!("{base}/drivers/infiniband/hw/other.ko")), "a driver of other hardware");
}

#[test]
fn what_is_missing_is_named() {
    let without = DEP.replace("b/virtio_blk.ko: b/virtio.ko\n", "");
    let error = build_with(&fixture(&without), &[]).unwrap_err().to_string();
    assert!(error.contains("lack virtio_blk"), "{error}");
    let fixture = fixture(DEP);
    fs::remove_file(fixture.dir.path().join("agent")).unwrap();
    let error = build_with(&fixture, &[]).unwrap_err().to_string();
    assert!(error.contains("make build"), "{error}");
}

#[test]
fn a_damaged_module_is_named() {
    let fixture = fixture(DEP);
    fs::write(fixture.kernel.modules.as_ref().unwrap().join("f/xfs.ko.xz"), "\u{fd}7zXZ").unwrap();
    let error = build_with(&fixture, &["xfs"]).unwrap_err().to_string();
    assert!(error.contains("xfs.ko.xz cannot be decompressed"), "{error}");
}

/// Against the kernels of the image cache: what a user of the NIC loads is there, with all that it needs.
#[test]
fn what_builds_on_the_nic_is_there_on_every_kernel() {
    let manifest = crate::Manifest::load().expect("this test reads real kernels: run images/prepare first");
    for entry in &manifest.kernels {
        let kernel = crate::resolve_kernel(&entry.name, None).unwrap();
        let tree = Tree::read(kernel.modules.as_ref().unwrap()).unwrap();
        // Any file will do for the agent.
        let (mut file, built) = build(&Spec {
            kernel: &kernel,
            agent: &manifest.dir.join("manifest.json"),
            boot: &NIC_BOOT_MODULES,
            modules: &[&RDMA_MODULES[..], &RDMA_STORAGE_MODULES].concat(),
            dependents_of: &RDMA_CORE,
            files: &[],
        })
        .unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        let members = unpack(&bytes);
        let base = format!("lib/modules/{}", kernel.release);
        let listed = String::from_utf8(members[&format!("{base}/modules.dep")].1.clone()).unwrap();
        let inside = Modules::parse(&listed, "", "", "");
        for name in
            ["mlx5_ib", "ib_ipoib", "ib_srp", "ib_srpt", "ib_iser", "ib_isert", "nvme_rdma", "nvmet_rdma", "rpcrdma"]
        {
            let wanted = tree.modules.load_order(name).unwrap();
            assert!(wanted.iter().any(|path| module_name(path) == name), "{} has no {name}", entry.name);
            for path in wanted {
                assert!(inside.path(&module_name(path)).is_some(), "{}: {name} needs {path}", entry.name);
                assert!(members.contains_key(&format!("{base}/{}", plain(path))), "{}: {path}", entry.name);
            }
        }
        assert!(inside.path("mlx4_ib").is_none() && inside.path("rdmavt").is_none(), "{}", entry.name);
        assert!(built.bytes < 64 << 20, "{}: {} bytes are copied at every start", entry.name, built.bytes);
    }
}
