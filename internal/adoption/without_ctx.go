package adoption

import (
	"context" // +audit
	"database/sql"
	"encoding/json"
	"net/http"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/hindsight-go/audit/audithttp" // +audit
	"github.com/hindsight-go/audit/auditsql"  // +audit
)

// datastore is the layer of a program that was written before database/sql had contexts:
// no method has a ctx.
type datastore struct {
	database // +audit
}

// database has the methods of *sql.DB that the program calls.
type database struct { // +audit
	*sql.DB                 // +audit
	ctx     context.Context //nolint:containedctx // +audit
} // +audit

func (d database) Exec(query string, args ...any) (sql.Result, error) { // +audit
	return d.ExecContext(d.ctx, query, args...) // +audit
} // +audit

func (d database) QueryRow(query string, args ...any) *sql.Row { // +audit
	return d.QueryRowContext(d.ctx, query, args...) // +audit
} // +audit

func (d database) Begin() (*sql.Tx, error) { return d.BeginTx(d.ctx, nil) } // +audit

// of is the datastore of a request.
func (d *datastore) of(r *http.Request) *datastore { // +audit
	return &datastore{database{d.DB, context.WithoutCancel(r.Context())}} // +audit
} // +audit

func (d *datastore) createProject(name, owner string) (id int, err error) {
	err = d.QueryRow("INSERT INTO project (name, owner) VALUES ($1, $2) RETURNING id", name, owner).Scan(&id)
	return id, err
}

func (d *datastore) renameProject(id int, name string) error {
	_, err := d.Exec("UPDATE project SET name = $2 WHERE id = $1", id, name)
	return err
}

// moveIssues moves issues and counts anew, in a transaction whose statements have no ctx
// of their own.
func (d *datastore) moveIssues(from, to int) error {
	tx, err := d.Begin()
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.Exec("UPDATE issue SET project = $2 WHERE project = $1", from, to); err != nil { //nolint:noctx // as it was
		return err
	}
	stmt, err := tx.Prepare("UPDATE project SET issues = (SELECT count(*) FROM issue WHERE project = $1) WHERE id = $1") //nolint:noctx // as it was
	if err != nil {
		return err
	}
	defer func() { _ = stmt.Close() }()
	for _, id := range []int{from, to} {
		if _, err := stmt.Exec(id); err != nil { //nolint:noctx // as it was
			return err
		}
	}
	return tx.Commit()
}

func (d *datastore) createIssue(project int, title string) error {
	if _, err := d.Exec("INSERT INTO issue (project, title) VALUES ($1, $2)", project, title); err != nil {
		return err
	}
	_, err := d.Exec("UPDATE project SET issues = issues + 1 WHERE id = $1", project)
	return err
}

func (d *datastore) deleteProject(id int) error {
	if _, err := d.Exec("DELETE FROM issue WHERE project = $1", id); err != nil {
		return err
	}
	_, err := d.Exec("DELETE FROM project WHERE id = $1", id)
	return err
}

// oldServer has handlers that ask a datastore which is made once.
type oldServer struct{ store *datastore }

type handler func(s *oldServer, r *http.Request, in input) (any, error)

// input is the body of each request.
type input struct {
	ID, To      int
	Name, Owner string
}

// serve answers with what a handler returns.
func (s *oldServer) serve(h handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s := &oldServer{s.store.of(r)} // +audit
		var in input
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			http.Error(w, "bad request", http.StatusBadRequest)
			return
		}
		out, err := h(s, r, in)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_ = json.NewEncoder(w).Encode(out)
	}
}

// newWithoutCtx is the program's main.
func newWithoutCtx(config *pgx.ConnConfig) (http.Handler, *sql.DB) {
	db := auditsql.OpenDB(stdlib.GetConnector(*config))             // +audit
	s := &oldServer{&datastore{database{db, context.Background()}}} // +audit
	mux := http.NewServeMux()
	mux.HandleFunc("POST /project", s.serve(func(s *oldServer, _ *http.Request, in input) (any, error) {
		return s.store.createProject(in.Name, in.Owner)
	}))
	mux.HandleFunc("PUT /project", s.serve(func(s *oldServer, _ *http.Request, in input) (any, error) {
		return nil, s.store.renameProject(in.ID, in.Name)
	}))
	mux.HandleFunc("POST /project/move", s.serve(func(s *oldServer, _ *http.Request, in input) (any, error) {
		return nil, s.store.moveIssues(in.ID, in.To)
	}))
	mux.HandleFunc("POST /issue", s.serve(func(s *oldServer, _ *http.Request, in input) (any, error) {
		return nil, s.store.createIssue(in.ID, in.Name)
	}))
	mux.HandleFunc("DELETE /project", s.serve(func(s *oldServer, _ *http.Request, in input) (any, error) {
		return nil, s.store.deleteProject(in.ID)
	}))
	return audithttp.Config{User: userOf}.Middleware(mux), db // +audit
}
