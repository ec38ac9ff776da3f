package pgtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// createDatabase makes a database on the server that admin connects to, and
// returns its DSN.
func createDatabase(ctx context.Context, admin, name string) (string, error) {
	dsn, err := withDatabase(admin, name)
	if err != nil {
		return "", err
	}
	// Not template1, the default: it cannot be copied while somebody is
	// connected to it.
	err = execute(ctx, admin, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize()+" TEMPLATE template0")
	if err != nil {
		return "", fmt.Errorf("pgtest: create database: %w", err)
	}
	return dsn, nil
}

// dropDatabase removes a database, with the connections that are open to it.
func dropDatabase(ctx context.Context, admin, name string) error {
	err := execute(ctx, admin, "DROP DATABASE IF EXISTS "+pgx.Identifier{name}.Sanitize()+" WITH (FORCE)")
	if err != nil {
		return fmt.Errorf("pgtest: drop database: %w", err)
	}
	return nil
}

// execute runs one statement on a connection of its own.
func execute(ctx context.Context, dsn, sql string) error {
	conn, err := pgconn.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, sql).ReadAll()
	return errors.Join(err, conn.Close(ctx))
}

// withDatabase returns the DSN with another database in it.
func withDatabase(dsn, name string) (string, error) {
	return rewrite(dsn, "dbname="+name, func(u *url.URL, q url.Values) {
		u.Path, u.RawPath = "/"+name, ""
		q.Del("dbname") // it would win over the path
		q.Del("database")
	})
}

// withAddr returns the DSN with another host:port in it.
func withAddr(dsn, addr string) (string, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", fmt.Errorf("pgtest: DSN: %w", err)
	}
	return rewrite(dsn, "host="+host+" port="+port, func(u *url.URL, q url.Values) {
		u.Host = addr
		q.Del("host")
		q.Del("port")
	})
}

// rewrite changes a DSN in either form: a URL, or keywords and values, to which
// the keywords are added. Its errors do not contain the DSN.
func rewrite(dsn, keywords string, change func(*url.URL, url.Values)) (string, error) {
	if !strings.HasPrefix(dsn, "postgres://") && !strings.HasPrefix(dsn, "postgresql://") {
		// A later keyword wins. Our values need no quotes.
		return dsn + " " + keywords, nil
	}
	u, err := url.Parse(dsn)
	if err != nil {
		// A url.Error prints the URL, which may hold a password.
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err
		}
		return "", fmt.Errorf("pgtest: DSN: %w", err)
	}
	q := u.Query()
	change(u, q)
	u.RawQuery = q.Encode()
	return u.String(), nil
}

// parseDSN reads a DSN as the driver does. Its errors do not contain the DSN.
func parseDSN(dsn string) (*pgconn.Config, error) {
	c, err := pgconn.ParseConfig(dsn)
	if err != nil {
		return nil, errors.New("pgtest: DSN: pgx does not accept it; it is withheld, as it may hold a password")
	}
	return c, nil
}

// databaseName makes a name that needs no quotes and that no other test uses,
// also not one of another process on the same server. The test's name is in it
// for whoever looks at the server.
func databaseName(test string) string {
	const most = 40 // of PostgreSQL's 63 bytes
	clean := strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', '0' <= r && r <= '9':
			return r
		case 'A' <= r && r <= 'Z':
			return r - 'A' + 'a'
		default:
			return '_'
		}
	}, test)
	return "pgtest_" + clean[:min(len(clean), most)] + "_" + strings.ToLower(rand.Text()[:12])
}
