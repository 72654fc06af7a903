//! Tomcat as Debian packages it, started by hand: keep-alive connections that last, static files, no log files.

use std::fs;

use whimbrel_testbed::programs::JAVA_HOME;

use crate::clients::{same, Lines, Load};
use crate::rig::{How, Rig, Side};

/// Its own directory, the same in both hosts, as an administrator would have it.
const BASE: &str = "/srv/tomcat";

const HOME: &str = "/usr/share/tomcat10";

/// Connections that last over all moves. More than one, so that Tomcat's threads take turns.
const CONNECTIONS: usize = 4;

/// Below this Tomcat writes a file itself, above it asks the kernel with sendfile(2): both ways are used.
const SENDFILE_FROM: usize = 49_152;

/// No port for shutdown (it would listen on loopback), no watchers of files, and no end of a connection.
const SERVER: &str = r#"<Server port="-1">
  <Service name="Catalina">
    <Connector port="7000" protocol="org.apache.coyote.http11.Http11NioProtocol" maxThreads="20"
               maxKeepAliveRequests="-1" keepAliveTimeout="-1" connectionTimeout="600000"/>
    <Engine name="Catalina" defaultHost="localhost">
      <Host name="localhost" appBase="webapps" autoDeploy="false"/>
    </Engine>
  </Service>
</Server>
"#;

/// What the package's own web.xml says of static files; JSP, which nobody here uses, is left out.
const WEB: &str = r#"<web-app xmlns="https://jakarta.ee/xml/ns/jakartaee" version="6.0" metadata-complete="true">
  <servlet>
    <servlet-name>default</servlet-name>
    <servlet-class>org.apache.catalina.servlets.DefaultServlet</servlet-class>
    <load-on-startup>1</load-on-startup>
  </servlet>
  <servlet-mapping>
    <servlet-name>default</servlet-name>
    <url-pattern>/</url-pattern>
  </servlet-mapping>
</web-app>
"#;

/// Where its classes are. None of them is looked through for web fragments and tag libraries: half of the time of a start.
const PROPERTIES: &str = r#"common.loader="${catalina.home}/lib/*.jar"
tomcat.util.scan.StandardJarScanFilter.jarsToSkip=*.jar
"#;

/// Paths and what they give.
fn pages() -> [(&'static str, String); 3] {
    [
        ("/index.html", page(200)),
        ("/medium.txt", page(SENDFILE_FROM / 2)),
        ("/large.txt", page(SENDFILE_FROM * 3)),
    ]
}

/// Lines that all differ, about so many bytes.
fn page(length: usize) -> String {
    let lines = (0..length / 32).map(|number| format!("line {number:8} of {length:8} is here\n"));
    lines.collect::<String>().trim_end().to_string()
}

/// Starts it, and waits until it serves.
pub fn start(rig: &Rig, options: &str) {
    for side in [Side::Alpha, Side::Beta] {
        let place = |name: &str| rig.host(side).path(format!("{BASE}/{name}"));
        for directory in ["conf", "temp", "webapps/ROOT"] {
            fs::create_dir_all(place(directory)).unwrap();
        }
        fs::write(place("conf/server.xml"), SERVER).unwrap();
        fs::write(place("conf/web.xml"), WEB).unwrap();
        fs::write(place("conf/catalina.properties"), PROPERTIES).unwrap();
        for (path, content) in pages() {
            fs::write(place(&format!("webapps/ROOT{path}")), content).unwrap();
        }
    }
    let classes = format!("{HOME}/bin/bootstrap.jar:{HOME}/bin/tomcat-juli.jar");
    rig.serve(&format!(
        "{JAVA_HOME}/bin/java {options} -Dcatalina.home={HOME} -Dcatalina.base={BASE} \
         -Djava.io.tmpdir={BASE}/temp -cp {classes} org.apache.catalina.startup.Bootstrap start"
    ));
    let mut lines = Lines::connect(&rig.hosts.client);
    (0..30).for_each(|number| exchange(&mut lines, number).unwrap());
}

/// A request and its response, which must be right to the last byte.
pub fn exchange(lines: &mut Lines, number: u64) -> std::io::Result<()> {
    let pages = pages();
    let (path, content) = &pages[number as usize % pages.len()];
    same(&lines.get(path)?, content)
}

/// Moves it under load by these arguments of `migrate`, one after the other.
pub fn under_load(moves: impl Iterator<Item = &'static str>) {
    let rig = Rig::new(&[]);
    start(&rig, "-Xmx256m");
    let load = Load::start(&rig.hosts.client, CONNECTIONS, exchange);
    // Idle during the moves, used between them.
    let mut quiet = Lines::connect(&rig.hosts.client);
    let mut side = Side::Alpha;
    for arguments in moves {
        load.more(200);
        rig.moved(side, &How::with(arguments));
        side = side.other();
        (0..30).for_each(|number| exchange(&mut quiet, number).unwrap());
        exchange(&mut Lines::connect(&rig.hosts.client), 0).unwrap();
    }
    load.more(200);
    load.finish();
    drop(quiet);
    rig.finish(side);
}
