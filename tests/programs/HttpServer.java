import com.sun.net.httpserver.HttpExchange;
import java.io.IOException;
import java.io.InputStream;
import java.lang.reflect.Method;
import java.net.InetSocketAddress;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.concurrent.Executors;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;

/**
 * A JVM under load: {@code HttpServer PORT LIVE_MB GARBAGE}. Keeps LIVE_MB of data whose checksums it knows, replaces
 * some of it all the time, and allocates garbage in four threads (GARBAGE objects every 5 ms each). Answers over HTTP:
 *
 * <pre>
 *   /         what it counted, its uptime and its threads
 *   /check    compares all live data with the checksums
 *   /gc       the same after a full collection
 *   /classes  loads a class that was never loaded before and runs it until it is compiled
 *   /threads  starts fifty threads and joins them
 *   /exec     starts a subprocess and reads its output
 * </pre>
 *
 * Every answer begins with {@code ok}, or with {@code BAD} and the reason.
 */
public class HttpServer {
    static final int BLOCK = 64 * 1024;
    static final int GARBAGE_THREADS = 4;
    static final int HTTP_THREADS = 24;

    static final AtomicLong allocations = new AtomicLong();
    static final AtomicLong ticks = new AtomicLong();
    static final AtomicLong wrong = new AtomicLong();
    static final long startedAt = System.nanoTime();

    /** Keeps the compiler from removing allocations. */
    static volatile Object sink;

    /** One piece of live data; its lock guards both fields. */
    static final class Block {
        byte[] data = new byte[BLOCK];
        int checksum;

        synchronized void replace(Random random) {
            byte[] fresh = new byte[BLOCK];
            random.nextBytes(fresh);
            data = fresh;
            checksum = Arrays.hashCode(fresh);
        }

        synchronized boolean right() {
            return Arrays.hashCode(data) == checksum;
        }
    }

    static Block[] live;

    /** Loaded by a class loader of its own, many times, as {@code /classes} asks. */
    public static class Job {
        public static long run(int steps) {
            long sum = 0;
            for (int i = 0; i < steps; i++) {
                sum += (i ^ (sum >> 3)) * 31L;
                if ((i & 1023) == 0) {
                    sum ^= Long.hashCode(sum);
                }
            }
            return sum;
        }
    }

    static final class Loader extends ClassLoader {
        Class<?> define(String name, byte[] bytes) {
            return defineClass(name, bytes, 0, bytes.length);
        }
    }

    interface Answer {
        String give() throws Exception;
    }

    public static void main(String[] arguments) throws Exception {
        int port = Integer.parseInt(arguments[0]);
        int liveMegabytes = Integer.parseInt(arguments[1]);
        int garbage = Integer.parseInt(arguments[2]);

        Random random = new Random(7);
        live = new Block[liveMegabytes * (1024 * 1024 / BLOCK)];
        for (int i = 0; i < live.length; i++) {
            live[i] = new Block();
            live[i].replace(random);
        }
        for (int i = 0; i < GARBAGE_THREADS; i++) {
            Thread thread = new Thread(() -> makeGarbage(garbage), "garbage-" + i);
            thread.setDaemon(true);
            thread.start();
        }
        Executors.newScheduledThreadPool(1).scheduleAtFixedRate(ticks::incrementAndGet, 10, 10, TimeUnit.MILLISECONDS);
        serve(port);
        for (long n = 1;; n++) {
            System.out.println("http " + n + " " + status());
            Thread.sleep(200);
        }
    }

    static void serve(int port) throws IOException {
        var server = com.sun.net.httpserver.HttpServer.create(new InetSocketAddress(port), 128);
        server.createContext("/", exchange -> reply(exchange, HttpServer::status));
        server.createContext("/check", exchange -> reply(exchange, HttpServer::checkAll));
        server.createContext("/gc", exchange -> reply(exchange, HttpServer::collect));
        server.createContext("/classes", exchange -> reply(exchange, HttpServer::loadClass));
        server.createContext("/threads", exchange -> reply(exchange, HttpServer::startThreads));
        server.createContext("/exec", exchange -> reply(exchange, HttpServer::execute));
        var pool = Executors.newFixedThreadPool(HTTP_THREADS);
        ((java.util.concurrent.ThreadPoolExecutor) pool).prestartAllCoreThreads();
        server.setExecutor(pool);
        server.start();
    }

    static void reply(HttpExchange exchange, Answer answer) throws IOException {
        String text;
        try {
            text = answer.give();
        } catch (Throwable problem) {
            text = "BAD " + problem;
        }
        byte[] bytes = (text + "\n").getBytes();
        exchange.sendResponseHeaders(200, bytes.length);
        exchange.getResponseBody().write(bytes);
        exchange.close();
    }

    static void makeGarbage(int objects) {
        ThreadLocalRandom random = ThreadLocalRandom.current();
        for (;;) {
            for (int i = 0; i < objects; i++) {
                sink = new byte[random.nextInt(20000) + 1];
                List<String> strings = new ArrayList<>();
                for (int j = 0; j < 50; j++) {
                    strings.add("s" + j + random.nextInt());
                }
                sink = strings;
                allocations.incrementAndGet();
            }
            Block block = live[random.nextInt(live.length)];
            if (!block.right()) {
                wrong.incrementAndGet();
            }
            if (random.nextInt(4) == 0) {
                block.replace(random);
            }
            try {
                Thread.sleep(5);
            } catch (InterruptedException interrupted) {
                wrong.incrementAndGet();
            }
        }
    }

    static String status() {
        String verdict = wrong.get() == 0 ? "ok" : "BAD " + wrong + " blocks;";
        long uptime = (System.nanoTime() - startedAt) / 1_000_000;
        return verdict + " allocations " + allocations + " ticks " + ticks + " uptime_ms " + uptime + " pid "
            + ProcessHandle.current().pid() + " threads " + Thread.activeCount();
    }

    static String checkAll() {
        for (Block block : live) {
            if (!block.right()) {
                wrong.incrementAndGet();
            }
        }
        return status();
    }

    static String collect() {
        System.gc();
        return checkAll();
    }

    static String loadClass() throws Exception {
        byte[] bytes;
        try (InputStream in = HttpServer.class.getResourceAsStream("HttpServer$Job.class")) {
            bytes = in.readAllBytes();
        }
        Method run = new Loader().define("HttpServer$Job", bytes).getMethod("run", int.class);
        long expected = (long) run.invoke(null, 20000);
        for (int i = 0; i < 2000; i++) {
            if ((long) run.invoke(null, 20000) != expected) {
                return "BAD compiled code gives another result";
            }
        }
        return "ok " + expected;
    }

    static String startThreads() throws Exception {
        AtomicLong ran = new AtomicLong();
        Thread[] threads = new Thread[50];
        for (int i = 0; i < threads.length; i++) {
            threads[i] = new Thread(() -> {
                sink = new byte[100000];
                ran.incrementAndGet();
            });
            threads[i].start();
        }
        for (Thread thread : threads) {
            thread.join();
        }
        return ran.get() == threads.length ? "ok" : "BAD only " + ran + " threads ran";
    }

    static String execute() throws Exception {
        Process child = new ProcessBuilder("echo", "child").start();
        String said = new String(child.getInputStream().readAllBytes()).trim();
        int code = child.waitFor();
        return said.equals("child") && code == 0 ? "ok" : "BAD subprocess said " + said + ", exit code " + code;
    }
}
