package auditgorm_test

import (
	"context"
	"testing"

	"gorm.io/driver/postgres"
	"gorm.io/gorm"

	"github.com/hindsight-go/audit"
	"github.com/hindsight-go/audit/audittest"
)

// BenchmarkStamp compares GORM with and without the plugin, and the plugin with and
// without a context, on a server that forces its commits to disk.
func BenchmarkStamp(b *testing.B) {
	server := audittest.NewServer(b, audittest.ServerOptions{Settings: map[string]string{"fsync": "on"}})
	database := server.NewDatabase(b)
	database.Exec(b, todoSQL)
	stamped := audit.WithContext(b.Context(), audit.Context{
		UserID: 187234, RequestID: "5f1c8a52-6c3b-4d53-9a53-9d3f5a1c2b3e", Endpoint: "POST /todo/{id}",
	})
	shapes := []struct {
		name string
		run  func(db *gorm.DB) error
	}{
		{"create", func(db *gorm.DB) error { return db.Create(&Todo{Task: "Sleep"}).Error }},
		{"exec", func(db *gorm.DB) error { return db.Exec("INSERT INTO todos (task) VALUES (?)", "Sleep").Error }},
		{"read", func(db *gorm.DB) error { return db.Limit(1).Find(&[]Todo{}).Error }},
	}
	for name, config := range modes {
		bare := open(b, postgres.Open(database.URL()), config)
		db := open(b, postgres.Open(database.URL()), config)
		use(b, db)
		for _, shape := range shapes {
			for _, kind := range []struct {
				name string
				db   *gorm.DB
				ctx  context.Context //nolint:containedctx // of this kind
			}{{"bare", bare, b.Context()}, {"no context", db, b.Context()}, {"stamped", db, stamped}} {
				b.Run(name+"/"+shape.name+"/"+kind.name, func(b *testing.B) {
					b.ReportAllocs()
					for b.Loop() {
						if err := shape.run(kind.db.WithContext(kind.ctx)); err != nil {
							b.Fatal(err)
						}
					}
				})
			}
		}
	}
}
