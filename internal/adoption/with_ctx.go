package adoption

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hindsight-go/audit/audithttp" // +audit
	"github.com/hindsight-go/audit/auditpgx"  // +audit
)

// repository is the layer of a program that passes ctx everywhere.
type repository struct {
	db auditpgx.Querier // +audit
}

func (r *repository) createProject(ctx context.Context, name, owner string) (id int, err error) {
	err = r.db.QueryRow(ctx, "INSERT INTO project (name, owner) VALUES ($1, $2) RETURNING id", name, owner).Scan(&id)
	return id, err
}

func (r *repository) renameProject(ctx context.Context, id int, name string) error {
	_, err := r.db.Exec(ctx, "UPDATE project SET name = $2 WHERE id = $1", id, name)
	return err
}

// moveIssues moves issues and counts anew.
func (r *repository) moveIssues(ctx context.Context, from, to int) error {
	return pgx.BeginFunc(ctx, r.db, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "UPDATE issue SET project = $2 WHERE project = $1", from, to); err != nil {
			return err
		}
		batch := &pgx.Batch{}
		for _, id := range []int{from, to} {
			batch.Queue("UPDATE project SET issues = (SELECT count(*) FROM issue WHERE project = $1) WHERE id = $1", id)
		}
		return tx.SendBatch(ctx, batch).Close()
	})
}

func (r *repository) createIssue(ctx context.Context, project int, title string) error {
	_, err := r.db.CopyFrom(ctx, pgx.Identifier{"issue"}, []string{"project", "title"}, pgx.CopyFromRows([][]any{{project, title}}))
	if err != nil {
		return err
	}
	_, err = r.db.Exec(ctx, "UPDATE project SET issues = issues + 1 WHERE id = $1", project)
	return err
}

func (r *repository) deleteProject(ctx context.Context, id int) error {
	return pgx.BeginFunc(ctx, r.db, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "DELETE FROM issue WHERE project = $1", id); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "DELETE FROM project WHERE id = $1", id)
		return err
	})
}

// newServer has handlers that pass the request's ctx on.
type newServer struct{ repo *repository }

func (s *newServer) serve(h func(ctx context.Context, in input) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var in input
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			http.Error(w, "bad request", http.StatusBadRequest)
			return
		}
		out, err := h(r.Context(), in)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_ = json.NewEncoder(w).Encode(out)
	}
}

// newWithCtx is the program's main.
func newWithCtx(pool *pgxpool.Pool) http.Handler {
	s := &newServer{&repository{auditpgx.Wrap(pool)}} // +audit
	mux := http.NewServeMux()
	mux.HandleFunc("POST /project", s.serve(func(ctx context.Context, in input) (any, error) {
		return s.repo.createProject(ctx, in.Name, in.Owner)
	}))
	mux.HandleFunc("PUT /project", s.serve(func(ctx context.Context, in input) (any, error) {
		return nil, s.repo.renameProject(ctx, in.ID, in.Name)
	}))
	mux.HandleFunc("POST /project/move", s.serve(func(ctx context.Context, in input) (any, error) {
		return nil, s.repo.moveIssues(ctx, in.ID, in.To)
	}))
	mux.HandleFunc("POST /issue", s.serve(func(ctx context.Context, in input) (any, error) {
		return nil, s.repo.createIssue(ctx, in.ID, in.Name)
	}))
	mux.HandleFunc("DELETE /project", s.serve(func(ctx context.Context, in input) (any, error) {
		return nil, s.repo.deleteProject(ctx, in.ID)
	}))
	return audithttp.Config{User: userOf}.Middleware(mux) // +audit
}

// userOf is who has signed in, as the program knows it already.
func userOf(r *http.Request) any { return r.Header.Get("X-Signed-In") }
