// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Kernel modules by name: what depmod's text files say about dependencies and aliases. The host packs an initramfs with it,
//! the agent loads modules with it.

use std::collections::{HashMap, HashSet};

use thiserror::Error;

/// No such module.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("no module named {0}")]
pub struct NoModule(pub String);

/// The module tree of one kernel.
#[derive(Debug, Default)]
pub struct Modules {
    /// Name -> (path below the module directory, paths it depends on).
    deps: HashMap<String, (String, Vec<String>)>,
    builtin: HashSet<String>,
    softdeps: HashMap<String, Vec<String>>,
    /// (alias or glob, module) in file order.
    aliases: Vec<(String, String)>,
    /// Aliases without wildcards -> their places in `aliases`.
    exact: HashMap<String, Vec<usize>>,
}

/// A module's name: the last part of its path without `.ko` and what follows, `-` as `_`.
pub fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    let stem = file.find(".ko").map_or(file, |end| &file[..end]);
    stem.replace('-', "_")
}

impl Modules {
    /// Reads the text files of a module directory: modules.dep, modules.softdep, modules.alias, modules.builtin (all but the
    /// first may be empty). Lines that make no sense are skipped.
    pub fn parse(dep: &str, softdep: &str, alias: &str, builtin: &str) -> Self {
        let mut modules = Self::default();
        for (path, needs) in dep.lines().filter_map(|line| line.split_once(':')) {
            let needs = needs.split_whitespace().map(str::to_owned).collect();
            modules.deps.insert(module_name(path), (path.to_owned(), needs));
        }
        modules.builtin = builtin.lines().map(module_name).collect();
        for line in softdep.lines() {
            let mut words = line.split_whitespace();
            if let (Some("softdep"), Some(name)) = (words.next(), words.next()) {
                let needs = words.filter(|word| !word.ends_with(':')).map(str::to_owned);
                modules.softdeps.entry(module_name(name)).or_default().extend(needs);
            }
        }
        for line in alias.lines() {
            let mut words = line.split_whitespace();
            if let (Some("alias"), Some(alias), Some(module)) = (words.next(), words.next(), words.next()) {
                if !alias.contains(['*', '?', '[']) {
                    modules.exact.entry(alias.replace('-', "_")).or_default().push(modules.aliases.len());
                }
                modules.aliases.push((alias.to_owned(), module_name(module)));
            }
        }
        modules
    }

    /// Path of a module below the module directory.
    pub fn path(&self, name: &str) -> Option<&str> {
        self.deps.get(&module_name(name)).map(|(path, _)| path.as_str())
    }

    /// Paths that a module depends on, as modules.dep lists them.
    pub fn needs(&self, name: &str) -> &[String] {
        self.deps.get(&module_name(name)).map_or(&[], |(_, needs)| needs)
    }

    /// What a module wants loaded with it (names or aliases).
    pub fn soft_needs(&self, name: &str) -> &[String] {
        self.softdeps.get(&module_name(name)).map_or(&[], Vec::as_slice)
    }

    /// All (alias, module) pairs.
    pub fn aliases(&self) -> &[(String, String)] {
        &self.aliases
    }

    /// True when it is part of the kernel image.
    pub fn is_builtin(&self, name: &str) -> bool {
        self.builtin.contains(&module_name(name))
    }

    /// Modules that go by `name`: itself, or those of which it is an alias. Empty for unknown and built-in ones.
    fn resolve(&self, name: &str) -> Vec<&str> {
        let plain = module_name(name);
        if let Some((key, _)) = self.deps.get_key_value(&plain) {
            return vec![key];
        }
        let exact = self.exact.get(&name.replace('-', "_")).into_iter().flatten().filter_map(|i| self.aliases.get(*i));
        let mut found: Vec<&str> = exact.map(|(_, module)| module.as_str()).collect();
        if found.is_empty() {
            let globs = self.aliases.iter().filter(|(alias, _)| glob(alias.as_bytes(), name.as_bytes()));
            found = globs.map(|(_, module)| module.as_str()).collect();
        }
        found.retain(|module| self.deps.contains_key(*module));
        found
    }

    /// Paths of the modules that need one of `names`, sorted.
    pub fn dependents(&self, names: &[&str]) -> Vec<&str> {
        let needed: Vec<&str> = names.iter().filter_map(|name| self.path(name)).collect();
        let needs_one = |needs: &[String]| needs.iter().any(|need| needed.contains(&need.as_str()));
        let found = self.deps.values().filter(|(_, needs)| needs_one(needs));
        let mut paths: Vec<&str> = found.map(|(path, _)| path.as_str()).collect();
        paths.sort_unstable();
        paths
    }

    /// Paths of `name` and all it needs, in the order of loading. Empty when it is built in.
    pub fn load_order(&self, name: &str) -> Result<Vec<&str>, NoModule> {
        let found = self.resolve(name);
        if found.is_empty() && !self.is_builtin(name) {
            return Err(NoModule(name.to_owned()));
        }
        let mut order = Order { modules: self, seen: HashSet::new(), paths: Vec::new() };
        for module in found {
            order.visit(module, 0);
        }
        Ok(order.paths)
    }
}

struct Order<'a> {
    modules: &'a Modules,
    seen: HashSet<String>,
    paths: Vec<&'a str>,
}

/// Chains of dependencies are a dozen long at most; a file that says otherwise is cut here.
const MAX_DEPTH: u32 = 64;

impl<'a> Order<'a> {
    fn visit(&mut self, name: &str, depth: u32) {
        if depth > MAX_DEPTH || !self.seen.insert(name.to_owned()) {
            return;
        }
        let Some((path, needs)) = self.modules.deps.get(name) else { return };
        for soft in self.modules.soft_needs(name) {
            for module in self.modules.resolve(soft) {
                self.visit(module, depth + 1);
            }
        }
        // modules.dep lists the whole closure, the farthest last.
        for need in needs.iter().rev() {
            self.visit(&module_name(need), depth + 1);
        }
        self.paths.push(path);
    }
}

/// Shell pattern with `*` and `?` only (device aliases with `[...]` do not match anything here).
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t, mut retry) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p, t));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match retry {
                Some((star, at)) => {
                    retry = Some((star, at + 1));
                    p = star + 1;
                    t = at + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DEP: &str = "\
kernel/fs/ext4/ext4.ko: kernel/fs/mbcache.ko kernel/fs/jbd2/jbd2.ko kernel/lib/crc16.ko
kernel/fs/mbcache.ko:
kernel/fs/jbd2/jbd2.ko: kernel/lib/crc16.ko
kernel/lib/crc16.ko:
kernel/crypto/crc32c_generic.ko.xz:
kernel/drivers/md/dm-mod.ko: kernel/drivers/dax/dax.ko
kernel/drivers/dax/dax.ko:
";
    const SOFTDEP: &str = "# comment\nsoftdep ext4 pre: crc32c\nsoftdep dm_mod post: missing\n";
    const ALIAS: &str = "alias fs-ext4 ext4\nalias crc32c crc32c_generic\nalias pci:v*d00001041sv* dax\n";

    fn modules() -> Modules {
        Modules::parse(DEP, SOFTDEP, ALIAS, "kernel/lib/libcrc32c.ko\n")
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let modules = modules();
        let order = modules.load_order("ext4").unwrap();
        let place = |name: &str| order.iter().position(|path| module_name(path) == name).unwrap();
        assert_eq!(order.len(), 5);
        assert!(
            place("crc16") < place("jbd2") && place("jbd2") < place("ext4") && place("crc32c_generic") < place("ext4")
        );
        assert_eq!(modules.load_order("fs-ext4").unwrap(), order);
        assert_eq!(modules.load_order("dm_mod").unwrap(), modules.load_order("dm-mod").unwrap());
    }

    #[test]
    fn builtin_unknown_and_globs() {
        let modules = modules();
        assert!(modules.load_order("libcrc32c").unwrap().is_empty());
        assert_eq!(modules.load_order("nope"), Err(NoModule("nope".into())));
        assert_eq!(modules.load_order("pci:v00001AF4d00001041sv1").unwrap(), ["kernel/drivers/dax/dax.ko"]);
    }

    #[test]
    fn dependents_at_any_depth() {
        let modules = modules();
        assert_eq!(modules.dependents(&["crc16"]), ["kernel/fs/ext4/ext4.ko", "kernel/fs/jbd2/jbd2.ko"]);
        assert_eq!(modules.dependents(&["dax", "ext4", "nope"]), ["kernel/drivers/md/dm-mod.ko"]);
    }

    #[test]
    fn a_cycle_ends() {
        let modules = Modules::parse("a.ko: b.ko\nb.ko: a.ko\n", "", "", "");
        assert_eq!(modules.load_order("a").unwrap().len(), 2);
    }

    proptest! {
        #[test]
        fn any_text_is_survived(dep in "\\PC{0,200}", soft in "(softdep [a-c] (pre:|post:)? [a-c]\n){0,9}", name in "[a-c*:]{0,5}") {
            let _ = Modules::parse(&dep, &soft, &soft.replace("softdep", "alias"), &dep).load_order(&name);
        }
    }
}
