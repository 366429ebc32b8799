//! Tells the linker how a program becomes a bootable image: a Linux `bzImage`, in one step.

fn main() {
    println!("cargo::rerun-if-changed=image.ld");
    println!("cargo::rerun-if-changed=src/boot.s");
    let bare = std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "none");
    if bare {
        let folder = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        for argument in [&format!("-T{folder}/image.ld"), "--no-pie", "--oformat=binary", "--build-id=none"] {
            println!("cargo::rustc-link-arg-bins={argument}");
        }
    }
}
