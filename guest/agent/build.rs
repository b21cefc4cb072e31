// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! With the feature `verbs`: compiles the shim over libibverbs and links the library, as a shared object of the guest's root.

fn main() {
    println!("cargo::rerun-if-changed=shim");
    #[cfg(feature = "verbs")]
    verbs();
}

#[cfg(feature = "verbs")]
fn verbs() {
    let mut shim = cc::Build::new();
    shim.file("shim/verbs.c").std("gnu11").warnings(true).extra_warnings(true);
    if let Err(error) = shim.try_compile("rnic_verbs_shim") {
        println!(
            "cargo::error=the shim over libibverbs does not compile ({error}): is libibverbs-dev installed? `images/prepare` does it"
        );
    }
    println!("cargo::rustc-link-lib=dylib=ibverbs");
}
