package auditui_test

import (
	"log"
	"net/http"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/auditui"
)

// The history behind the login that the program has.
func ExampleNew() {
	var client *audit.Client // from audit.Open
	whoMaySeeWhat := func(r *http.Request) (auditui.Access, error) {
		user := r.Header.Get("X-User") // as the program's own login leaves it
		if user == "" {
			return auditui.Access{}, auditui.ErrUnauthorized
		}
		return auditui.Access{User: user, Values: true}, nil
	}
	mux := http.NewServeMux()
	ui, err := auditui.New(client, auditui.Config{Access: whoMaySeeWhat}) // there is no open default
	if err != nil {
		log.Fatal(err)
	}
	mux.Handle("/admin/audit/", http.StripPrefix("/admin/audit", ui))
}
