// Package schema is what the code in package ent is generated from.
package schema

import (
	"entgo.io/ent"
	"entgo.io/ent/schema/edge"
	"entgo.io/ent/schema/field"
)

// User has todos.
type User struct{ ent.Schema }

// Fields of a user.
func (User) Fields() []ent.Field {
	return []ent.Field{
		field.Int64("id"),
		field.String("name").Unique(),
	}
}

// Edges of a user.
func (User) Edges() []ent.Edge {
	return []ent.Edge{
		edge.To("todos", Todo.Type),
		edge.From("watched", Todo.Type).Ref("watchers"),
	}
}

// Todo belongs to a user, and others may watch it.
type Todo struct{ ent.Schema }

// Fields of a todo.
func (Todo) Fields() []ent.Field {
	return []ent.Field{
		field.Int64("id"),
		field.String("cell").Default(""),
		field.String("task"),
		field.Bool("done").Default(false),
		field.Int64("user_id").Optional().Nillable(),
		field.Time("deleted_at").Optional().Nillable(),
	}
}

// Edges of a todo.
func (Todo) Edges() []ent.Edge {
	return []ent.Edge{
		edge.From("user", User.Type).Ref("todos").Unique().Field("user_id"),
		edge.To("watchers", User.Type).StorageKey(edge.Table("todo_watchers"), edge.Columns("todo_id", "user_id")),
	}
}
