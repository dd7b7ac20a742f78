package main

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"net"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditui"
)

func (a *app) uiCommand() *cobra.Command {
	var listen string
	var allowRevert bool
	cmd := &cobra.Command{
		Use:   "ui",
		Short: "Show the history in a browser",
		Long: `Show the history in a browser, read only unless --allow-revert is given: reverts are then
made in your name (--as). The address that it prints holds a key, without which nobody
sees anything. It is for you: to give others a part of it, mount package auditui behind
the login of your program.`,
		Example: "  hindsight ui\n  hindsight ui --listen 127.0.0.1:9000 --allow-revert --as ann",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			return a.ui(cmd.Context(), client, listen, allowRevert)
		},
	}
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:8080", "the address to listen at; port 0 is any that is free")
	cmd.Flags().BoolVar(&allowRevert, "allow-revert", false, "let undo and redo be done")
	return cmd
}

// How long the UI waits for the head of a request, and for requests when it ends.
const (
	headPatience = 10 * time.Second
	lastPatience = 2 * time.Second
)

func (a *app) ui(ctx context.Context, client *audit.Client, listen string, allowRevert bool) error {
	// Before a browser is sent there: is there anything to see?
	if _, err := client.Changes().Limit(1).List(ctx); err != nil {
		return err
	}
	pages, err := auditui.New(client, auditui.Config{Access: func(*http.Request) (auditui.Access, error) {
		return auditui.Access{User: a.actor(), Values: !a.flags.noValues, Export: true, Revert: allowRevert}, nil
	}})
	if err != nil {
		return err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", listen)
	if err != nil {
		return err
	}
	key := rand.Text()
	server := &http.Server{Handler: withKey(key, pages), ReadHeaderTimeout: headPatience, BaseContext: func(net.Listener) context.Context { return ctx }}
	host := listener.Addr().String()
	if tcp, ok := listener.Addr().(*net.TCPAddr); ok && !tcp.IP.IsLoopback() {
		a.note("Whoever reaches this machine can ask for the pages, and whoever has the key sees all of them: the connection is not encrypted.")
	}
	if err := a.writef("The history is at http://%s/?key=%s\nCtrl-C ends it.\n", host, key); err != nil {
		return err
	}
	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastPatience)
		defer cancel()
		err := server.Shutdown(last)
		if err != nil {
			err = server.Close()
		}
		stopped <- err
	}()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	<-stopped
	return nil // Ctrl-C is how it ends
}

// keyCookie keeps the key in the browser, so that it stands in one address only.
const keyCookie = "hindsight"

// withKey answers only those who have the key: other users of the machine, and pages of
// other sites in the same browser, can reach the port as well.
func withKey(key string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		same := func(text string) bool { return subtle.ConstantTimeCompare([]byte(text), []byte(key)) == 1 }
		if same(r.URL.Query().Get("key")) {
			http.SetCookie(w, &http.Cookie{Name: keyCookie, Value: key, Path: "/", HttpOnly: true, SameSite: http.SameSiteStrictMode})
			w.Header().Set("Referrer-Policy", "no-referrer")
			http.Redirect(w, r, "/", http.StatusSeeOther)
			return
		}
		cookie, err := r.Cookie(keyCookie)
		if err != nil || !same(cookie.Value) {
			http.Error(w, "The address that hindsight ui printed has a key: open that one.", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}
