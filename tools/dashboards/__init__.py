"""The Grafana dashboards in deploy/grafana, generated from the tables of panels here."""
