//! `cogvx-export`: the name people type for `cogvx export`.

fn main() -> std::process::ExitCode {
    cogvx::cli::export_main()
}
