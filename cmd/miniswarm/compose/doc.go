// Package compose reads Compose files, today's as well as those of "docker stack deploy", and gives what Docker's own
// conversion makes services of.
//
//	stack, err := compose.Load(compose.Options{Files: files, Dir: dir, Environment: env})
//	for _, n := range stack.Notes { ... }      // FILE:LINE: KEY: ignored, because
//	swarm.RunDeploy(ctx, cli, flags, opts, stack.Config)
//
// # How
//
// Docker's loader knows the format of 2022 and no lines. So each file is parsed with its lines, anchors and merge keys are
// written out, and what is newer than Docker's loader is rewritten into what it knows: mem_limit becomes
// deploy.resources.limits.memory, a port published as "8080" becomes 8080, and so on. The keys are in one table, Keys, which
// says of each what becomes of it; docs/compose.md is made of it. The rewritten document goes through Docker's own schema,
// interpolation, merge and conversion, so that a file which Docker accepts becomes exactly what Docker makes of it. What
// its types have no field for is kept beside them ([Stack.Adjust], [Stack.ConfigData], [Stack.Depends]).
//
// A service that extends another is a file of its own that comes before, and so is an included file: merging several files
// is Docker's business already.
//
// A mistake is a [Mistake]: where Docker's loader says only what is wrong, the place is found by leaving out one part of
// the document after another.
package compose
