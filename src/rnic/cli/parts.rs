// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest of ours needs beside its kernel: the agent's program and an initramfs around it.

use std::fs::File;

use image::{KernelSource, initramfs};

use super::places;

/// The agent that has verbs: its name beside the other, and where it goes in the initramfs (guest/agent, `boot`).
const VERBS_AGENT: (&str, &str) = ("rnic-agent-verbs", "lib/modules/rnic-agent-verbs");

/// What the guest's modules are for beside scenarios and a shell: everything is copied at every start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Use {
    /// A person with a NIC, who may load whatever builds on it.
    pub nic: bool,
    /// A machine with persistent memory, which is to be found.
    pub pmem: bool,
}

/// An initramfs with the agent and all modules that a scenario or a shell may want.
pub fn own_initramfs(kernel: &KernelSource, whose: Use) -> Result<File, super::Error> {
    let agent = places::find(&places::AGENT)?;
    let mut modules = [&initramfs::LAB_MODULES[..], &initramfs::RDMA_MODULES].concat();
    let (mut boot, mut dependents_of): (Vec<&str>, &[&str]) = (Vec::new(), &[]);
    if whose.nic {
        modules.extend(initramfs::RDMA_STORAGE_MODULES);
        boot.extend(initramfs::NIC_BOOT_MODULES);
        dependents_of = &initramfs::RDMA_CORE;
    }
    if whose.pmem {
        boot.extend(initramfs::PMEM_BOOT_MODULES);
    }
    let verbs = agent.with_file_name(VERBS_AGENT.0);
    let with_verbs = [(VERBS_AGENT.1, verbs.as_path(), 0o755)];
    let files = if verbs.is_file() { with_verbs.as_slice() } else { &[] };
    let spec = initramfs::Spec { kernel, agent: &agent, boot: &boot, modules: &modules, dependents_of, files };
    let (file, built) = initramfs::build(&spec)?;
    log::info!("initramfs: {} KiB, {} modules, without {:?}", built.bytes >> 10, built.modules, built.missing);
    Ok(file)
}

/// RFC 4648 with padding: commands travel on the kernel command line this way.
pub fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for index in 0..4 {
            let letter = ALPHABET[(word >> (18 - 6 * index) & 63) as usize];
            out.push(if index > chunk.len() { '=' } else { letter.into() });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_of_rfc_4648() {
        for (plain, coded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
