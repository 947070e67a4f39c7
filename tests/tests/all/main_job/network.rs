//! Who answers at the warehouse's address need not be the warehouse: no form of a lease tells it the password (S18).

use std::fs;
use std::path::Path;
use std::process::Command;

use kdbt_e2e::client::Workstation;
use kdbt_e2e::dbt::Project;
use kdbt_e2e::impostor::{Heard, Impostor, Tls, Wants};
use kdbt_e2e::postgres::PgVersion;
use kdbt_e2e::process::Finished;
use kdbt_e2e::stack::Stack;
use serde_json::json;

use super::{Caller, options};

/// A stack whose users are sent to the impostor, while the broker itself reaches the server.
async fn misled(impostor: &Impostor) -> Stack {
    let stack = Stack::prepare(&options(PgVersion::Pg15), |_| {}).await.unwrap();
    impostor.certify(&stack.postgres).unwrap();
    let ca = stack.postgres.ca_file().unwrap().display().to_string();
    configure(&stack, "    insecure_transport: true\n", "");
    tell(&stack, &format!("port: {}, ca_file: {ca}", impostor.port()));
    configure(&stack, "dwh.password }", &format!("dwh.password }}, ca_file: {ca}"));
    configure(
        &stack,
        "policies: policies\n",
        "policies: policies\nlimits: { leases_per_person: 40 }\n",
    );
    let mut stack = stack.bootstrapped(|_| {}).await.unwrap();
    stack.broker.start().await.unwrap();
    stack
}

fn configure(stack: &Stack, what: &str, instead: &str) {
    let file = stack.broker.config_file();
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains(what), "{text}");
    fs::write(file, text.replace(what, instead)).unwrap();
}

/// Sends the users of the server elsewhere than to its own port.
fn tell(stack: &Stack, port: &str) {
    let public = |port: &str| format!("public: {{ host: 127.0.0.1, {port} }}");
    let own = format!("port: {}", stack.postgres.port());
    configure(stack, &public(&own), &public(port));
}

/// A form in which a lease is handed out and used, by a command that logs in.
struct Form {
    name: &'static str,
    run: Command,
}

/// Logs in with dbt's own driver and the lease's variables, in a tenth of the time that dbt takes to start.
const DRIVER: &str = "\
import os, psycopg2
lease = os.environ
psycopg2.connect(host=lease['KDBT_HOST'], port=lease['KDBT_PORT'], user=lease['KDBT_USER'],
    dbname=lease['KDBT_DBNAME'], password=lease['DBT_ENV_SECRET_KDBT_PASSWORD']).cursor().execute('SELECT 1')";

/// Logs in with a profile as dbt does, also in a tenth of the time: what dbt hands to its driver.
const READER: &str = r#"
import os, re, sys, psycopg2, yaml
text = open(os.path.join(sys.argv[1], 'profiles.yml')).read()
variable = r"""\{\{ env_var\('(\w+)'(?:, '([^']*)')?\)[^}]*\}\}"""
text = re.sub(variable, lambda found: os.environ.get(found[1]) or found[2], text)
profile = next(iter(yaml.safe_load(text).values()))
lease = profile['outputs'][profile['target']]
names = ['host', 'port', 'user', 'password', 'dbname', 'sslmode', 'sslrootcert']
psycopg2.connect(**{name: lease[name] for name in names if name in lease}).cursor().execute('SELECT 1')"#;

/// What logs in with a profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// dbt, which starts slowly.
    Dbt,
    /// What dbt hands to its driver.
    Reader,
}

/// Every form of a lease that there is.
async fn forms(stack: &Stack, ada: &Workstation, project: &Project, by: By) -> Vec<Form> {
    let client = |arguments: &[&str]| ada.command_in(project, arguments).unwrap();
    let shell = |script: &str| {
        let mut command = client(&[]);
        let equipped: Vec<_> = command
            .get_envs()
            .map(|(name, value)| (name.to_owned(), value.map(ToOwned::to_owned)))
            .collect();
        command = Command::new("sh");
        command.current_dir(project.path()).args(["-ec", script]);
        for (name, value) in equipped {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    };
    let written = project.path().join("written");
    let (template, printed, plain) = ("template", "printed", "plain");
    for folder in [template, printed, plain] {
        fs::create_dir_all(project.path().join(folder)).unwrap();
    }
    let to = |folder: &str| project.path().join(folder).join("profiles.yml");
    let get = async |arguments: &[&str]| Finished::of(client(arguments)).await.unwrap().expect(0).unwrap().stdout;
    fs::write(to(template), get(&["profile", "--template", "-t", "team"]).await).unwrap();
    fs::write(to(printed), get(&["profile", "-t", "team"]).await).unwrap();
    get(&["profile", "-t", "team", "--write", &written.display().to_string()]).await;
    let caller = Caller::person(stack, "ada");
    let fragment = caller
        .fragment(&json!({ "target": "team", "profile": "shop" }))
        .await
        .expect(201);
    fs::write(to(plain), &fragment.text).unwrap();
    let environment = get(&["env", "-t", "team"]).await;
    fs::write(project.path().join("lease.sh"), environment).unwrap();

    let psql = r#"PGPASSWORD="$DBT_ENV_SECRET_KDBT_PASSWORD" psql -X -h "$KDBT_HOST" -p "$KDBT_PORT" -U "$KDBT_USER" -d "$KDBT_DBNAME" -c "SELECT 1""#;
    fs::write(project.path().join("reader.py"), READER).unwrap();
    let with = |folder: &str| match by {
        By::Dbt => format!("dbt debug --profiles-dir {folder}"),
        By::Reader => format!("python reader.py {folder}"),
    };
    let exec = |script: &str| client(&["exec", "-t", "team", "--", "sh", "-c", script]);
    let own = with("\"$DBT_PROFILES_DIR\"");
    let bare = "unset PGSSLMODE PGREQUIREAUTH";
    // As its reader is told to give it the authority.
    let trusting = format!("export PGSSLROOTCERT='{}'", stack.postgres.ca_file().unwrap().display());
    let forms = [
        (
            "kdbt-client psql",
            client(&["psql", "-t", "team", "--", "-X", "-c", "SELECT 1"]),
        ),
        ("exec -- psql", exec(psql)),
        (
            "exec -- dbt's driver",
            client(&["exec", "-t", "team", "--", "python", "-c", DRIVER]),
        ),
        ("env, psql", shell(&format!(". ./lease.sh; {psql}"))),
        ("exec", exec(&own)),
        ("exec with the template", exec(&with(template))),
        (
            "env with the template",
            shell(&format!(". ./lease.sh; {}", with(template))),
        ),
        (
            "the template with the lease's own variables and the authority alone",
            shell(&format!(". ./lease.sh; {bare}; {}", with(template))),
        ),
        ("profile", shell(&with(printed))),
        ("profile --write", shell(&with("written"))),
        (
            "the answer to a plain POST",
            shell(&format!("{trusting}; {}", with(plain))),
        ),
    ];
    forms.into_iter().map(|(name, run)| Form { name, run }).collect()
}

/// Runs every form at once; what the impostor heard.
async fn run_all(forms: Vec<Form>, impostor: &Impostor) -> Heard {
    let count = forms.len();
    let runs = forms
        .into_iter()
        .map(async |form| (form.name, Finished::of(form.run).await.unwrap()));
    for (name, done) in futures_util::future::join_all(runs).await {
        assert_ne!(done.code, 0, "{name} worked with an impostor: {done:?}");
    }
    let heard = impostor.heard();
    assert!(heard.connections >= count, "some never came: {heard:?}");
    heard
}

/// Passwords of all leases that there are: those of the forms that hand them out.
fn passwords(project: &Path) -> Vec<String> {
    let files = [
        "lease.sh",
        "printed/profiles.yml",
        "written/profiles.yml",
        "plain/profiles.yml",
    ];
    let text: String = files
        .iter()
        .map(|file| fs::read_to_string(project.join(file)).unwrap())
        .collect();
    let word = |text: &&str| text.len() == 32 && text.bytes().all(|b| b.is_ascii_alphanumeric());
    let found: Vec<String> = text
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(word)
        .map(str::to_owned)
        .collect();
    assert!(found.len() >= files.len(), "{text}");
    found
}

/// S18
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_cannot_prove_itself_is_told_no_password_by_any_form_of_a_lease() {
    let impostor = Impostor::start().unwrap();
    let stack = misled(&impostor).await;
    let ada = stack.log_in("ada").await.unwrap();
    for (tls, wants, by) in [
        // To check the certificate's authority alone, or nothing of it, or to go on without TLS, would be told here.
        (Tls::Elsewhere, Wants::Cleartext, By::Dbt),
        // Whoever comes as far as to be asked has been taken in, whatever it is asked for.
        (Tls::Unvouched, Wants::Md5, By::Reader),
        (Tls::Refused, Wants::UnprovenScram, By::Reader),
        // Who has the server's own certificate hears every profile that is used on its own: so nothing but the
        // certificate kept them silent above, and these forms do reach whoever is at the address.
        (Tls::Stolen, Wants::Cleartext, By::Reader),
    ] {
        let project = Stack::project().unwrap();
        let forms = forms(&stack, &ada, &project, by).await;
        impostor.play(tls, wants);
        let heard = run_all(forms, &impostor).await;
        let told = passwords(project.path()).iter().filter(|one| heard.holds(one)).count();
        if tls == Tls::Stolen {
            assert_eq!(told, 4, "{heard:?}");
        } else {
            assert!(
                heard.answers.is_empty() && heard.believers == 0 && told == 0,
                "{tls:?}, {wants:?}: {heard:?}"
            );
        }
        Caller::person(&stack, "ada")
            .post("/v1/revocations", &json!({ "mine": true }))
            .await
            .expect(200);
    }
}

/// S18: what remains where the operator gives verified TLS up. With `exec`, dbt's libpq (16 and later) knows that the
/// server must prove itself; a profile on its own and psql 15 do not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_an_insecure_target_exec_still_tells_dbt_no_password_to_give_away() {
    let impostor = Impostor::start().unwrap();
    let stack = Stack::prepare(&options(PgVersion::Pg18), |_| {}).await.unwrap();
    tell(&stack, &format!("port: {}", impostor.port()));
    let mut stack = stack.bootstrapped(|_| {}).await.unwrap();
    stack.broker.start().await.unwrap();
    let ada = stack.log_in("ada").await.unwrap();
    let project = Stack::project().unwrap();
    let show = "import os; print(os.environ['DBT_ENV_SECRET_KDBT_PASSWORD'], flush=True)";
    fs::write(project.path().join("driver.py"), DRIVER).unwrap();
    for (wants, program) in [
        (Wants::Cleartext, "dbt debug"),
        (Wants::Md5, "python driver.py"),
        (Wants::UnprovenScram, "python driver.py"),
    ] {
        impostor.play(Tls::Refused, wants);
        let script = format!("python -c \"{show}\"; {program}");
        let run = ["exec", "-t", "team", "--", "sh", "-c", &script];
        let done = ada.run_in(&project, &run).await.unwrap();
        let password = done.stdout.lines().next().unwrap();
        let heard = impostor.heard();
        assert!(
            password.len() == 32 && done.code != 0 && heard.connections > 0,
            "{wants:?}: {done:?}"
        );
        assert!(!heard.holds(password) && heard.believers == 0, "{wants:?}: {heard:?}");
        assert_eq!(
            heard.answers.is_empty(),
            wants != Wants::UnprovenScram,
            "{wants:?}: {heard:?}"
        );
    }
}
