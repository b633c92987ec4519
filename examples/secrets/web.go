package main

import (
	"context"
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"
)

// Settings of the page.
type Settings struct {
	// Title is the page's.
	Title string
	// Store is the URL of the store.
	Store string
	// Replica is how this replica is to introduce itself.
	Replica string
}

func readSettings(path string) (Settings, error) {
	var set Settings
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, &set)
	}
	if err == nil && set.Store == "" {
		err = fmt.Errorf("%s names no Store", path)
	}
	if err != nil {
		return set, fmt.Errorf("read the settings: %w", err)
	}
	return set, nil
}

// page is the web page.
type page struct {
	set      Settings
	password string
	client   http.Client
}

func newPage(set Settings, password string) http.Handler {
	p := &page{set: set, password: password, client: http.Client{Timeout: 3 * time.Second}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", p.show)
	mux.HandleFunc("POST /{$}", p.add)
	return mux
}

var look = template.Must(template.New("page").Parse(`<!doctype html>
<title>{{.Title}}</title>
<h1>{{.Title}}</h1>
<form method="post"><input name="note" maxlength="1000" autofocus> <button>leave a note</button></form>
<ul>
{{range .Notes}}<li>{{.}}</li>
{{end}}</ul>
<p>shown by {{.Replica}}</p>
`))

func (p *page) show(w http.ResponseWriter, r *http.Request) {
	text, err := p.ask(r.Context(), http.MethodGet, "", http.StatusOK)
	if err != nil {
		p.fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_ = look.Execute(w, struct { // a client that has gone needs no page
		Settings
		Notes []string
	}{p.set, strings.FieldsFunc(text, func(c rune) bool { return c == '\n' })})
}

func (p *page) add(w http.ResponseWriter, r *http.Request) {
	if _, err := p.ask(r.Context(), http.MethodPost, r.FormValue("note"), http.StatusCreated); err != nil {
		p.fail(w, err)
		return
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

// ask speaks with the store.
func (p *page) ask(ctx context.Context, method, body string, want int) (string, error) {
	req, err := http.NewRequestWithContext(ctx, method, p.set.Store+"/notes", strings.NewReader(body))
	if err != nil {
		return "", err
	}
	req.SetBasicAuth("notes", p.password)
	resp, err := p.client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != want {
		err = fmt.Errorf("the store says %s: %s", resp.Status, strings.TrimSpace(string(text)))
	}
	return string(text), err
}

func (p *page) fail(w http.ResponseWriter, err error) {
	slog.Error("the store", "err", err)
	http.Error(w, p.set.Replica+": "+err.Error(), http.StatusBadGateway)
}
