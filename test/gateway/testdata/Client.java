import java.io.StringReader;
import java.io.StringWriter;
import java.sql.*;
import java.util.Properties;
import org.postgresql.PGConnection;

/** What people do with Debian's JDBC driver, through the gateway. Each line printed is checked. */
public class Client {
    static String state(Statement s, String sql) {
        try {
            s.execute(sql);
            return "no error";
        } catch (SQLException e) {
            return e.getSQLState();
        }
    }

    public static void main(String[] args) throws Exception {
        try (Connection c = DriverManager.getConnection(args[0], new Properties())) {
            StringBuilder items = new StringBuilder();
            try (PreparedStatement p = c.prepareStatement("select item from orders where id = ?")) {
                for (int round = 0; round < 4; round++) { // from the fifth execution on it is named on the server, and binary
                    for (int i = 1; i <= 3; i++) {
                        p.setInt(1, i);
                        ResultSet r = p.executeQuery();
                        r.next();
                        if (round == 3) items.append(r.getString(1)).append(',');
                    }
                }
            }
            System.out.println("prepared " + items);
            Statement s = c.createStatement();
            System.out.print("refused " + state(s, "delete from orders"));
            ResultSet n = s.executeQuery("select count(*) from orders");
            n.next();
            System.out.println(" " + n.getInt(1));
            c.setAutoCommit(false);
            s.execute("insert into orders values (100, 'in a transaction', 1, true, '{}')");
            System.out.println("refused inside " + state(s, "delete from orders") + " " + state(s, "select 1"));
            c.rollback();
            try (PreparedStatement p = c.prepareStatement("insert into orders (id, item) values (?, ?)")) {
                for (int i = 1000; i < 2000; i++) {
                    p.setInt(1, i);
                    p.setString(2, "batched");
                    p.addBatch();
                }
                System.out.println("batched " + p.executeBatch().length);
            }
            s.setFetchSize(100);
            ResultSet all = s.executeQuery("select id from orders where id >= 1000");
            int rows = 0;
            while (all.next()) rows++;
            System.out.println("fetched " + rows);
            var copy = c.unwrap(PGConnection.class).getCopyAPI();
            System.out.println("copied " + copy.copyIn("copy orders (id, item) from stdin", new StringReader("3000\ta\n3001\tb\n")));
            StringWriter out = new StringWriter();
            System.out.println("copied out " + copy.copyOut("copy (select id from orders where id >= 3000) to stdout", out));
            c.rollback();
            c.setAutoCommit(true);
            Statement sleeping = c.createStatement();
            new Thread(() -> {
                try {
                    Thread.sleep(300);
                    sleeping.cancel();
                } catch (Exception e) {
                    throw new RuntimeException(e);
                }
            }).start();
            System.out.println("cancelled " + state(sleeping, "select pg_sleep(60)"));
            DatabaseMetaData m = c.getMetaData();
            ResultSet tables = m.getTables(null, "public", "orders", null);
            System.out.println("metadata " + tables.next() + " " + m.getColumns(null, "public", "orders", null).next() + " " + m.getPrimaryKeys(null, "public", "orders").next());
        }
    }
}
