#![no_std]
#![no_main]
fn a() -> tmk::TestResult {
    Ok(())
}
tmk::program!("x": a);
