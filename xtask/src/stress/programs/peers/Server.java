// Serves files with a length and in chunks, and echoes bodies: Tomcat, embedded.

import jakarta.servlet.http.HttpServlet;
import jakarta.servlet.http.HttpServletRequest;
import jakarta.servlet.http.HttpServletResponse;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import org.apache.catalina.startup.Tomcat;

public class Server {
    public static void main(String[] arguments) throws Exception {
        Path files = Path.of(arguments[0]);
        Tomcat tomcat = new Tomcat();
        tomcat.setBaseDir(arguments[1]);
        tomcat.setPort(Integer.parseInt(arguments[2]));
        tomcat.getConnector().setProperty("maxKeepAliveRequests", "-1");
        var context = tomcat.addContext("", null);
        Tomcat.addServlet(context, "files", new HttpServlet() {
            @Override
            protected void service(HttpServletRequest request, HttpServletResponse response) throws IOException {
                String[] parts = request.getRequestURI().split("/");
                byte[] body = parts[1].equals("echo")
                    ? request.getInputStream().readAllBytes()
                    : Files.readAllBytes(files.resolve(parts[2]));
                if (!parts[1].equals("c")) {
                    response.setContentLength(body.length);
                }
                var out = response.getOutputStream();
                for (int at = 0; at < body.length; at += 5000) {
                    out.write(body, at, Math.min(5000, body.length - at));
                    if (parts[1].equals("c")) {
                        out.flush();
                    }
                }
            }
        });
        context.addServletMappingDecoded("/*", "files");
        tomcat.start();
        tomcat.getServer().await();
    }
}
