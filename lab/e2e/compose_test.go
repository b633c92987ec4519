package e2e

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/swarm"
)

// A stack's services start in the order of depends_on, each after what it waits for; and what a dry run foretells changes
// nothing and comes true.
func TestComposeOrderAndDryRun(t *testing.T) {
	c := onShared(t)
	file := writeFile(t, "compose.yml", fmt.Sprintf(`name: shop
services:
  web:
    image: %[1]s:1
    mem_limit: 64m
    shm_size: 8m
    depends_on:
      db: {condition: service_healthy}
      migrate: {condition: service_completed_successfully}
  migrate:
    image: %[1]s:1
    command: [say, migrated]
    depends_on: {db: {condition: service_started}}
  db:
    image: %[1]s:h1
    container_name: db
    healthcheck: {start_interval: 100ms, start_period: 5s}
`, c.witness))

	plan := c.miniswarm(t, "vm1", "stack", "deploy", "--dry-run", "-c", file)
	for _, name := range []string{"db", "migrate", "web"} {
		if !regexp.MustCompile(`service shop_` + name + ` would be created\n  start  shop_` + name + `\.1 on vm\d: `).MatchString(plan) {
			t.Errorf("the plan says nothing of %s:\n%s", name, plan)
		}
	}
	services, err := c.swarm("vm1").ServiceList(t.Context(), swarm.ServiceListOptions{})
	if err != nil || len(services) > 0 {
		t.Fatalf("%d services after a dry run: %v", len(services), err)
	}

	out := c.miniswarm(t, "vm1", "stack", "deploy", "-c", file)
	for _, says := range []string{`shop_db: service_healthy, 1 out of 1 tasks`, `shop_migrate: service_completed_successfully, 1 out of 1 tasks`} {
		if !strings.Contains(out, says) {
			t.Errorf("stack deploy does not say %q:\n%s", says, out)
		}
	}
	task := func(service string) swarm.Task {
		t.Helper()
		all, err := c.swarm("vm1").TaskList(t.Context(), swarm.TaskListOptions{Filters: filters.NewArgs(filters.Arg("service", service))})
		if err != nil || len(all) != 1 {
			t.Fatalf("tasks of %s: %d, %v", service, len(all), err)
		}
		return all[0]
	}
	db, migrate, web := task("shop_db"), task("shop_migrate"), task("shop_web")
	if migrate.Status.State != swarm.TaskStateComplete || !migrate.Status.Timestamp.Before(web.CreatedAt) {
		t.Errorf("migrate is %s since %s, web was made at %s", migrate.Status.State, migrate.Status.Timestamp, web.CreatedAt)
	}
	if db.Status.State != swarm.TaskStateRunning || !db.Status.Timestamp.Before(web.CreatedAt) {
		t.Errorf("db is %s since %s, web was made at %s", db.Status.State, db.Status.Timestamp, web.CreatedAt)
	}

	plan = c.miniswarm(t, "vm1", "service", "scale", "--dry-run", "shop_web=4")
	foretold := make(map[string]string)
	for _, m := range regexp.MustCompile(`start  (shop_web\.\d) on (vm\d): `).FindAllStringSubmatch(plan, -1) {
		foretold[m[1]] = m[2]
	}
	if len(foretold) != 3 || !strings.Contains(plan, "1 task unchanged") {
		t.Fatalf("the plan is no plan to scale from 1 to 4:\n%s", plan)
	}
	c.miniswarm(t, "vm1", "service", "scale", "shop_web=4")
	for line := range strings.Lines(c.miniswarm(t, "vm1", "service", "ps", "--format", "{{.Name}} {{.Node}}", "shop_web")) {
		name, node, _ := strings.Cut(strings.TrimSpace(line), " ")
		if want, ok := foretold[name]; ok && want != node {
			t.Errorf("%s was foretold for %s and is on %s", name, want, node)
		}
	}

	began := time.Now()
	c.miniswarm(t, "vm1", "stack", "rm", "--wait", "shop")
	tasks, err := c.swarm("vm1").TaskList(t.Context(), swarm.TaskListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, left := range tasks {
		if left.Status.State == swarm.TaskStateRunning {
			t.Errorf("%s runs %s after stack rm --wait", left.ID, time.Since(began))
		}
	}
}
