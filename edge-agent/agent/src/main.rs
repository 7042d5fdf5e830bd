//! The program `simcorp-edge`. Everything is in the library, so that the fuzz targets reach it too.

fn main() -> std::process::ExitCode {
    simcorp_edge::run_program()
}
