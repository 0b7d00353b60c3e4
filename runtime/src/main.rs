//! The `kiseki` command.

fn main() -> std::process::ExitCode {
    kiseki::cli::main()
}
